"""Images as they are found, made into images that every reader decodes alike.

An image is decoded whole, so that one that is cut off is found now and not in the middle of a
search; damage that leaves a JPEG decodable to its end cannot be told from an image. What is plain
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
"""What may have to be done to an image: of an animation the first frame is taken, a rotation is
applied, transparency is laid over white, a border is cut off."""

_PLAIN = ("JPEG", "MPO", "PNG")
_LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
_PNG_BIT_DEPTH = 24  # offset of that byte in a PNG
_JPEG_SIDE = 65_500  # pixels that libjpeg writes at most
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # but those within images
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
"""What puts an image upright, by EXIF's orientation."""


class BadImage(ValueError):
    """An image that cannot be used.

    Attributes:
        kind: `empty`, `not an image`, `truncated` (cut off or corrupt), `too large`, `too small`,
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
    """What is done to every image."""

    resize: int | None = None
    """Pixels of the short side; smaller images stay as they are."""
    quality: int = 95
    """Of the JPEGs that are written, 1 to 100."""


@dataclass(frozen=True)
class Encoded:
    """A JPEG or PNG, and what had to be changed for it."""

    data: bytes
    changes: tuple[str, ...] = ()
    """Of `CHANGES`."""


def encode(data: bytes, options: EncodeOptions, border: int = 0) -> Encoded:
    """An image as it is stored.

    An 8-bit RGB or greyscale JPEG or PNG to which nothing is to be done stays byte for byte. Other
    images become RGB: PNG where the source is lossless and the size stays, else JPEG with 4:4:4
    chroma. Colour profiles and EXIF are not kept then.

    Args:
        data: the file as it was found.
        options: what is done to every image.
        border: pixels to cut off every side.

    Raises:
        BadImage: it cannot be decoded to its end, or what becomes of it cannot be kept.
    """
    image, changes = _decode(data)
    try:
        return _encode(data, image, changes, options, border)
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("too large", _one_line(error)) from None
    except Exception as error:  # one image is never to stop the others
        raise BadImage("cannot be encoded", _one_line(error)) from None


def _encode(
    data: bytes, image: Image.Image, changes: list[str], options: EncodeOptions, border: int
) -> Encoded:
    rgb = _crop(image, border)
    if border:
        changes.append("border")
    if options.resize is not None and min(rgb.size) > options.resize:
        rgb = rgb.convert("RGB").resize(
            _short_side(rgb.size, options.resize), Image.Resampling.BICUBIC
        )
        changes.append("resized")
    if not changes:
        return Encoded(data)
    lossless = image.format not in _LOSSY and "resized" not in changes
    return Encoded(_write(rgb.convert("RGB"), lossless, options.quality), tuple(changes))


def decode(data: bytes) -> Image.Image:
    """An image as `encode` would store it, RGB and upright, whatever it is.

    Raises:
        BadImage: it cannot be decoded to its end.
    """
    image, _ = _decode(data)
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """How its camera was held, by EXIF's numbers; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a camera's notes may be corrupt where its image is not
        return 1


def _decode(data: bytes) -> tuple[Image.Image, list[str]]:
    """The image in mode L or RGB, upright; `format` is that of the file. And what was changed."""
    if not data:
        raise BadImage("empty", "0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _as_rgb(*_load(data))
    except BadImage:
        raise
    except UnidentifiedImageError:
        if data.startswith(_MAGIC):
            raise BadImage("truncated", f"{len(data)} bytes, no image in them") from None
        raise BadImage("not an image", f"begins with {data[:8]!r}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise BadImage("too large", _one_line(error)) from None
    except Exception as error:  # a corrupt file can make a decoder raise anything
        raise BadImage("truncated", _one_line(error)) from None


def _load(data: bytes) -> tuple[Image.Image, list[str]]:
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
    changes = []
    if image.format not in _PLAIN:
        changes.append("format")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        changes.append("animated")
        image.seek(0)
    is_deep_png = image.format == "PNG" and data[_PNG_BIT_DEPTH] == 16
    if is_deep_png and not image.mode.startswith("I"):
        changes.append("16-bit")  # Pillow has already taken the high byte of each colour
    image.load()
    if image.format in ("JPEG", "MPO") and not _has_end(data):
        raise BadImage("truncated", "no end marker")
    if orientation(image) in range(2, 9):
        changes.append("EXIF rotation")
        return _upright(image), changes
    return image, changes


def _upright(image: Image.Image) -> Image.Image:
    upright = image.transpose(_TRANSPOSED[orientation(image)])
    upright.format = image.format
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


def _as_rgb(image: Image.Image, changes: list[str]) -> tuple[Image.Image, list[str]]:
    file_format = image.format
    if image.mode.startswith("I"):
        image = _eight_bits(image)
        changes.append("16-bit")
    if image.mode in ("P", "PA"):
        changes.append("palette")
    if _is_transparent(image):
        image = _over_white(image)
        changes.append("transparency")
    elif image.mode not in ("L", "RGB"):
        if image.mode != "P":
            changes.append({"CMYK": "CMYK", "1": "1-bit"}.get(image.mode, "mode"))
        image = _convert(image)
    image.format = file_format
    return image, changes


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey levels scaled to 8 bits: 65535 becomes 255."""
    found = np.asarray(image)
    if found.min() < 0 or found.max() > 65535:
        raise BadImage("mode", f"{image.mode}: integers of more than 16 bits")
    levels = found.astype(np.uint32)
    levels += 128
    levels //= 257
    return Image.fromarray(levels.astype(np.uint8))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _over_white(image: Image.Image) -> Image.Image:
    opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImage("mode", "F: floating-point pixels, whose range is unknown")
    try:
        return image.convert("RGB")
    except ValueError:
        raise BadImage("mode", f"{image.mode} has no conversion to RGB") from None


def _crop(image: Image.Image, border: int) -> Image.Image:
    width, height = image.size
    if min(width, height) <= 2 * border:
        raise BadImage("too small", f"{width} x {height} pixels, a border of {border}")
    return image.crop((border, border, width - border, height - border)) if border else image


def _short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """As `torchvision` rounds: the long side down."""
    width, height = size
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _write(image: Image.Image, lossless: bool, quality: int) -> bytes:
    image.info = {}  # Pillow would write a colour profile or a transparent colour from there
    target = io.BytesIO()
    if lossless:
        image.save(target, "PNG")
    elif max(image.size) > _JPEG_SIDE:
        width, height = image.size
        raise BadImage("too large", f"{width} x {height} pixels, more than a JPEG can have")
    else:
        image.save(target, "JPEG", quality=quality, subsampling=0)
    return target.getvalue()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
