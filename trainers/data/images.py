"""Images of any kind, as images that every reader decodes alike: 8 bits, RGB or grey, upright.

Images are decoded whole, so that one that is cut off is found now and not in the middle of a
search. (Damage inside a JPEG that still decodes to its end cannot be detected.)
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from trainers.errors import first_line

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP",
)  # fmt: skip
"""Formats that are opened. Pillow would start Ghostscript for some others."""

_PLAIN = ("JPEG", "MPO", "PNG")
_LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")
_WHOLE: dict[str, Any] = {"quality": 95, "subsampling": "4:4:4"}
_RESIZED: dict[str, Any] = {"quality": 90, "subsampling": "4:2:0"}
"""How JPEGs are written, of images that keep their size and of others."""
_PNG_BIT_DEPTH = 24  # offset of that byte in a PNG
_MAX_RATIO = 600
"""Long by short side. Evaluation resizes the whole image before it crops: with 384 pixels of the
short side (a model of 336), a longer one would have more pixels than Pillow opens, 89 million."""
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # except those within image data
_JPEG_END = 0xD9


class BadImage(ValueError):
    """An image that cannot be used; the text is the reason, such as `truncated: no end marker`."""


def encode(data: bytes, *, resize: int | None = None) -> bytes:
    """The image file `data` as it is stored.

    An 8-bit JPEG or PNG that needs no change stays byte for byte. Others become RGB: PNG if the
    source is lossless and the size stays, else JPEG of quality 95 with 4:4:4 chroma. Of an
    animation the first frame is taken. Colour profiles and EXIF are dropped from what is encoded
    again.

    Args:
        resize: pixels of the short side; smaller images keep their size. Larger ones become JPEG of
            quality 90 with 4:2:0 chroma, which takes less time to decode.

    Raises:
        BadImage: it cannot be decoded to its end, is too large or thin, or cannot be stored.
    """
    image, as_it_is = _decode(data)
    is_lossless = image.format not in _LOSSY
    how = _WHOLE
    if max(image.size) > _MAX_RATIO * min(image.size):
        raise BadImage(f"too thin: {image.width} x {image.height} pixels")
    try:
        if resize is not None and min(image.size) > resize:
            # torchvision rounds the long side down, too.
            width, height = (int(resize * side / min(image.size)) for side in image.size)
            image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            as_it_is = is_lossless = False
            how = _RESIZED
        if as_it_is:
            return data
        target = io.BytesIO()
        image = image.convert("RGB")
        image.info = {}  # Pillow would write a colour profile or a transparent colour from there
        if is_lossless:
            image.save(target, "PNG")
        else:
            image.save(target, "JPEG", **how)
        return target.getvalue()
    except Exception as error:  # one image must not stop the others
        raise BadImage(f"cannot be encoded: {first_line(error)}") from None


def decode(data: bytes) -> Image.Image:
    """The image as `encode` would store it: RGB and upright."""
    image, _ = _decode(data)
    return image if image.mode == "RGB" else image.convert("RGB")


def num_pixels(data: bytes) -> int:
    """Pixels of an image file by its header; 0 if it is none that `encode` would decode."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _opened(data)
    except Exception:  # `encode` gives the reason
        return 0
    return 0 if is_too_large(image) else image.width * image.height


def _opened(data: bytes) -> Image.Image:
    Image.init()
    return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])


def is_too_large(image: Image.Image) -> bool:
    """Whether an image that is opened has more pixels than Pillow decodes without a warning.

    The warning cannot decide: threads share the filters of warnings.
    """
    most = Image.MAX_IMAGE_PIXELS
    return most is not None and image.width * image.height > most


def orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 is upright."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF may be corrupt in an image that is not
        return 1


def _decode(data: bytes) -> tuple[Image.Image, bool]:
    """The image in mode L or RGB, upright; and whether any reader decodes the file to it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _load(data)
    except BadImage:
        raise
    except UnidentifiedImageError:
        begins = f"it begins with {data[:8].decode('latin-1')!r}" if data else "the file is empty"
        raise BadImage(f"not an image: {begins}") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise BadImage(f"too large: {first_line(error)}") from None
    except Exception as error:  # a corrupt file can make a decoder raise anything
        raise BadImage(f"truncated: {first_line(error)}") from None


def _load(data: bytes) -> tuple[Image.Image, bool]:
    image = _opened(data)
    if is_too_large(image):
        raise BadImage(f"too large: {image.width} x {image.height} pixels")
    file_format = image.format
    as_it_is = file_format in _PLAIN
    if file_format != "MPO" and getattr(image, "is_animated", False):
        as_it_is = False
        image.seek(0)
    if file_format == "PNG" and data[_PNG_BIT_DEPTH] == 16:
        as_it_is = False  # of colours, Pillow takes the high byte
    image.load()
    if file_format in ("JPEG", "MPO") and not _has_end(data):
        raise BadImage("truncated: no end marker")
    if orientation(image) in range(2, 9):
        as_it_is = False
        image = ImageOps.exif_transpose(image)

    if image.mode == "F":
        raise BadImage("mode F: floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise BadImage(f"mode {image.mode}: integers of more than 16 bits")
        # 65535 becomes 255; Pillow's own conversion would clip at 255.
        image = Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8))
        as_it_is = False
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        as_it_is = False
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
        as_it_is = False
    image.format = file_format
    return image, as_it_is


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
