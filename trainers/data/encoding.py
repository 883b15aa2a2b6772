"""Images of any kind, converted to images that every reader decodes alike.

Images are decoded whole, so that one that is cut off is found now and not in the middle of a
search. (Damage inside a JPEG that still decodes to its end cannot be detected.) 8-bit RGB and grey
JPEG and PNG stay as they are, byte for byte; the rest becomes 8-bit RGB.
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
"""Formats that are opened. Pillow would start Ghostscript for some others."""

CHANGES = (
    "CMYK", "16-bit", "1-bit", "palette", "animated", "EXIF rotation", "transparency", "format",
    "mode", "border", "resized",
)  # fmt: skip
"""Conversions: of an animation the first frame is taken, an EXIF rotation is applied, transparency
is laid over white, a border is cut off."""

_PLAIN = ("JPEG", "MPO", "PNG")
_LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
_PNG_BIT_DEPTH = 24  # offset of that byte in a PNG
_JPEG_SIDE = 65_500  # pixels that libjpeg writes at most
_MAX_RATIO = 600
"""Long by short side. Evaluation resizes the whole image before it crops: with 384 pixels of the
short side (a model of 336), a longer one would have more pixels than Pillow opens, 89 million."""
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # except those within image data
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
"""Operation that turns an image upright, by EXIF orientation."""


class BadImage(ValueError):
    """An image that cannot be used.

    Attributes:
        kind: `empty`, `not an image`, `truncated` (cut off or corrupt), `too large`, `too small`,
            `too thin`, `mode` or `cannot be encoded`.
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
    """Pixels of the short side. Smaller images keep their size."""
    quality: int = 95
    """Of the JPEGs that are written, 1 to 100."""


@dataclass(frozen=True)
class Encoded:
    """A JPEG or PNG, and the conversions that it needed, of `CHANGES`."""

    data: bytes
    changes: tuple[str, ...] = ()


def encode(data: bytes, options: EncodeOptions, border: int = 0) -> Encoded:
    """The image file `data` as it is stored, after `border` pixels are cut off every side.

    A JPEG or PNG that needs no change stays byte for byte. Other images become RGB: PNG if the
    source is lossless and the size stays, else JPEG with 4:4:4 chroma. Colour profiles and EXIF are
    then dropped.

    Raises:
        BadImage: it cannot be decoded to its end, is too thin, or cannot be stored.
    """
    image, changes = _decode(data)
    try:
        width, height = image.size
        if min(width, height) <= 2 * border:
            raise BadImage("too small", f"{width} x {height} pixels, a border of {border}")
        rgb = image
        if border:
            rgb = image.crop((border, border, width - border, height - border))
            changes.append("border")
        width, height = rgb.size
        if max(width, height) > _MAX_RATIO * min(width, height):
            raise BadImage("too thin", f"{width} x {height} pixels")
        if options.resize is not None and min(rgb.size) > options.resize:
            # torchvision rounds the long side down, too.
            size = tuple(int(options.resize * side / min(rgb.size)) for side in rgb.size)
            rgb = rgb.convert("RGB").resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]
            changes.append("resized")
        if not changes:
            return Encoded(data)
        is_lossless = image.format not in _LOSSY and "resized" not in changes
        return Encoded(_write(rgb.convert("RGB"), is_lossless, options.quality), tuple(changes))
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("too large", _one_line(error)) from None
    except Exception as error:  # one image must not stop the others
        raise BadImage("cannot be encoded", _one_line(error)) from None


def decode(data: bytes) -> Image.Image:
    """The image as `encode` would store it: RGB and upright.

    Raises:
        BadImage: it cannot be decoded to its end.
    """
    image, _ = _decode(data)
    return image if image.mode == "RGB" else image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF may be corrupt in an image that is not
        return 1


def _decode(data: bytes) -> tuple[Image.Image, list[str]]:
    """The image in mode L or RGB, upright, with the file's `format`; and the conversions made."""
    if not data:
        raise BadImage("empty", "0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Raised from the size in the header, before anything is decoded.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _load(data)
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
    image: Image.Image = Image.open(
        io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN]
    )
    file_format, changes = image.format, []
    if file_format not in _PLAIN:
        changes.append("format")
    if file_format != "MPO" and getattr(image, "is_animated", False):
        changes.append("animated")
        image.seek(0)
    if file_format == "PNG" and data[_PNG_BIT_DEPTH] == 16 and not image.mode.startswith("I"):
        changes.append("16-bit")  # Pillow has already taken the high byte of each colour
    image.load()
    if file_format in ("JPEG", "MPO") and not _has_end(data):
        raise BadImage("truncated", "no end marker")
    turned = orientation(image)
    if turned in _TRANSPOSED:
        changes.append("EXIF rotation")
        image = image.transpose(_TRANSPOSED[turned])

    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise BadImage("mode", f"{image.mode}: integers of more than 16 bits")
        image = Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))
        changes.append("16-bit")  # 65535 becomes 255
    if image.mode in ("P", "PA"):
        changes.append("palette")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        changes.append("transparency")
    elif image.mode not in ("L", "RGB"):
        if image.mode != "P":
            changes.append({"CMYK": "CMYK", "1": "1-bit"}.get(image.mode, "mode"))
        if image.mode == "F":
            raise BadImage("mode", "F: floating-point pixels, whose range is unknown")
        try:
            image = image.convert("RGB")
        except ValueError:
            raise BadImage("mode", f"{image.mode} has no conversion to RGB") from None
    image.format = file_format
    return image, changes


def _has_end(data: bytes) -> bool:
    """Whether a JPEG has its end marker, perhaps with other data after it.

    Decoders fill up what is missing with grey.
    """
    if data.endswith(b"\xff\xd9"):  # true of nearly all, and saves the search
        return True
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        position = found.end()
        if found[1][0] == _JPEG_END:
            return True
        position += int.from_bytes(data[position : position + 2], "big")  # skip the segment
    return False


def _write(image: Image.Image, is_lossless: bool, quality: int) -> bytes:
    image.info = {}  # Pillow would write a colour profile or a transparent colour from there
    target = io.BytesIO()
    if is_lossless:
        image.save(target, "PNG")
    elif max(image.size) > _JPEG_SIDE:
        width, height = image.size
        raise BadImage("too large", f"{width} x {height} pixels, more than a JPEG can have")
    else:
        image.save(target, "JPEG", quality=quality, subsampling=0)
    return target.getvalue()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
