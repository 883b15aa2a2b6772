"""Pictures as they are found, made into pictures that every reader decodes alike.

A picture is decoded whole, so that one that is cut off is found now and not in the middle of a
search; damage that leaves a JPEG decodable to its end cannot be told from a picture. What is plain
already stays as it is, byte for byte; the rest becomes 8-bit RGB.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP",
)  # fmt: skip
"""What is opened at all; Pillow would start Ghostscript for some others."""

CHANGES = (
    "CMYK", "16-bit", "1-bit", "palette", "animated", "EXIF rotation", "transparency", "format",
    "mode", "border", "resized",
)  # fmt: skip
"""What may have to be done to a picture: of an animation the first frame is taken, a rotation is
applied, transparency is laid over white, a border is cut off."""

_PLAIN = ("JPEG", "MPO", "PNG")
_LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
_PNG_BIT_DEPTH = 24  # offset of that byte in a PNG
_JPEG_SIDE = 65_500  # pixels that libjpeg writes at most
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # but those within pictures
_JPEG_END = 0xD9
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts a picture upright, by EXIF's orientation."""


class BadPicture(ValueError):
    """A picture that cannot be used.

    Attributes:
        kind: `empty`, `not a picture`, `truncated` (cut off or corrupt), `too large`, `too small`,
            `mode` or `cannot be encoded`.
        detail: more about it, in one line.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class EncodeOptions:
    """What is done to every picture."""

    resize: int | None = None
    """Pixels of the short side; smaller pictures stay as they are."""
    quality: int = 95
    """Of the JPEGs that are written, 1 to 100."""


@dataclass(frozen=True)
class Encoded:
    """A JPEG or PNG, and what had to be changed for it."""

    data: bytes
    changes: tuple[str, ...] = ()
    """Of `CHANGES`."""


def encode(data: bytes, options: EncodeOptions, border: int = 0) -> Encoded:
    """A picture as it is stored.

    An 8-bit RGB or greyscale JPEG or PNG to which nothing is to be done stays byte for byte. Other
    pictures become RGB: PNG where the source is lossless and the size stays, else JPEG with 4:4:4
    chroma. Colour profiles and EXIF are not kept then.

    Args:
        data: the file as it was found.
        options: what is done to every picture.
        border: pixels to cut off every side.

    Raises:
        BadPicture: it cannot be decoded to its end, or what becomes of it cannot be kept.
    """
    picture, changes = _decode(data)
    try:
        return _encode(data, picture, changes, options, border)
    except BadPicture:
        raise
    except MemoryError as error:
        raise BadPicture("too large", _one_line(error)) from None
    except Exception as error:  # one picture is never to stop the others
        raise BadPicture("cannot be encoded", _one_line(error)) from None


def _encode(
    data: bytes, picture: Image.Image, changes: list[str], options: EncodeOptions, border: int
) -> Encoded:
    rgb = _crop(picture, border)
    if border:
        changes.append("border")
    if options.resize is not None and min(rgb.size) > options.resize:
        rgb = rgb.convert("RGB").resize(
            _short_side(rgb.size, options.resize), Image.Resampling.BICUBIC
        )
        changes.append("resized")
    if not changes:
        return Encoded(data)
    lossless = picture.format not in _LOSSY and "resized" not in changes
    return Encoded(_write(rgb.convert("RGB"), lossless, options.quality), tuple(changes))


def decode(data: bytes) -> Image.Image:
    """A picture as `encode` would store it, RGB and upright, whatever it is.

    Raises:
        BadPicture: it cannot be decoded to its end.
    """
    picture, _ = _decode(data)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def orientation(picture: Image.Image) -> int:
    """How its camera was held, by EXIF's numbers; 1 is upright."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a camera's notes may be corrupt where its picture is not
        return 1


def _decode(data: bytes) -> tuple[Image.Image, list[str]]:
    """The picture in mode L or RGB, upright; `format` is that of the file. And what was changed."""
    if not data:
        raise BadPicture("empty", "0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _as_rgb(*_load(data))
    except BadPicture:
        raise
    except UnidentifiedImageError:
        if data.startswith(_MAGIC):
            raise BadPicture("truncated", f"{len(data)} bytes, no picture in them") from None
        raise BadPicture("not a picture", f"begins with {data[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise BadPicture("too large", _one_line(error)) from None
    except Exception as error:  # a corrupt file can make a decoder raise anything
        raise BadPicture("truncated", _one_line(error)) from None


def _load(data: bytes) -> tuple[Image.Image, list[str]]:
    Image.init()
    picture = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
    changes = []
    if picture.format not in _PLAIN:
        changes.append("format")
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        changes.append("animated")
        picture.seek(0)
    is_deep_png = picture.format == "PNG" and data[_PNG_BIT_DEPTH] == 16
    if is_deep_png and not picture.mode.startswith("I"):
        changes.append("16-bit")  # Pillow has already taken the high byte of each colour
    picture.load()
    if picture.format in ("JPEG", "MPO") and not _has_end(data):
        raise BadPicture("truncated", "no end marker")
    if orientation(picture) in range(2, 9):
        changes.append("EXIF rotation")
        return _upright(picture), changes
    return picture, changes


def _upright(picture: Image.Image) -> Image.Image:
    upright = picture.transpose(_TRANSPOSED[orientation(picture)])
    upright.format = picture.format
    return upright


def _has_end(data: bytes) -> bool:
    """Whether a JPEG goes on to its end marker; what follows that is no part of it.

    Decoders make up what is missing, and grey is what they make up.
    """
    if data.endswith(b"\xff\xd9"):  # nearly all do: no need to look at every byte
        return True
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        position = found.end()
        if found[1][0] == _JPEG_END:
            return True
        position += int.from_bytes(data[position : position + 2], "big")  # over a segment
    return False


def _as_rgb(picture: Image.Image, changes: list[str]) -> tuple[Image.Image, list[str]]:
    file_format = picture.format
    if picture.mode.startswith("I"):
        picture = _eight_bits(picture)
        changes.append("16-bit")
    if picture.mode in ("P", "PA"):
        changes.append("palette")
    if _is_transparent(picture):
        picture = _over_white(picture)
        changes.append("transparency")
    elif picture.mode not in ("L", "RGB"):
        if picture.mode != "P":
            changes.append({"CMYK": "CMYK", "1": "1-bit"}.get(picture.mode, "mode"))
        picture = _convert(picture)
    picture.format = file_format
    return picture, changes


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey levels scaled to 8 bits: 65535 becomes 255."""
    found = np.asarray(picture)
    if found.min() < 0 or found.max() > 65535:
        raise BadPicture("mode", f"{picture.mode}: integers of more than 16 bits")
    levels = found.astype(np.uint32)
    levels += 128
    levels //= 257
    return Image.fromarray(levels.astype(np.uint8))


def _is_transparent(picture: Image.Image) -> bool:
    return picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info


def _over_white(picture: Image.Image) -> Image.Image:
    opaque = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(opaque, picture.convert("RGBA")).convert("RGB")


def _convert(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        raise BadPicture("mode", "F: floating-point pixels, whose range is unknown")
    try:
        return picture.convert("RGB")
    except ValueError:
        raise BadPicture("mode", f"{picture.mode} has no conversion to RGB") from None


def _crop(picture: Image.Image, border: int) -> Image.Image:
    width, height = picture.size
    if min(width, height) <= 2 * border:
        raise BadPicture("too small", f"{width} x {height} pixels, a border of {border}")
    return picture.crop((border, border, width - border, height - border)) if border else picture


def _short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """As `torchvision` rounds: the long side down."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _write(picture: Image.Image, lossless: bool, quality: int) -> bytes:
    picture.info = {}  # Pillow would write a colour profile or a transparent colour from there
    target = io.BytesIO()
    if lossless:
        picture.save(target, "PNG")
    elif max(picture.size) > _JPEG_SIDE:
        width, height = picture.size
        raise BadPicture("too large", f"{width} x {height} pixels, more than a JPEG can have")
    else:
        picture.save(target, "JPEG", quality=quality, subsampling=0)
    return target.getvalue()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
