"""What becomes of images of every kind, against pixels computed by hand."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.images import exif_of, file_of
from trainers.data.images import BadImage, decode, encode

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
JPEG, PNG, GIF, WEBP = (file_of(NOISE, kind) for kind in ("JPEG", "PNG", "GIF", "WEBP"))
PROGRESSIVE = file_of(NOISE, "JPEG", progressive=True, quality=30)
THUMBNAIL = b"Exif\x00\x00" + JPEG
LARGE = file_of(np.tile(NOISE, (10, 10, 1)), "JPEG", exif=THUMBNAIL)
ROTATED = exif_of([(0x0112, 3, 1, struct.pack("<I", 6)), (0x8769, 2, 4, b"abcd")])
"""Orientation 6, and another note, which is malformed."""
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def opened(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        return image


def pixels(encoded):
    return np.asarray(opened(encoded))


def png(width, height, depth, colour, rows):
    """A PNG written by hand: what Pillow cannot write itself."""

    def chunk(name, body):
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PLAIN = {
    "jpeg": JPEG,
    "progressive jpeg": PROGRESSIVE,
    "grey jpeg": file_of(NOISE[..., 0], "JPEG"),
    "png": PNG,
    "png with profile": file_of(NOISE, icc_profile=PROFILE),
    "grey png": file_of(NOISE[..., 0]),
    "mpo": file_of(NOISE, "MPO", save_all=True, append_images=[Image.fromarray(NOISE[::-1])]),
    "restarts": file_of(NOISE, "JPEG", restart_marker_blocks=1),
    "fill that the standard allows": JPEG[:-2] + b"\xff\xff\xff\xd9",
    "comment": JPEG[:2] + b"\xff\xfe\x00\x06\xff\xd9\xff\xd9" + JPEG[2:],
    "zeros after the end": JPEG + b"\x00" * 100,
    "trailer": JPEG + b"SEFT\xff\xda\x00\x10 left by a camera",
    "preview after the end": PROGRESSIVE + JPEG[: len(JPEG) // 2],
    "thumbnail": file_of(NOISE, "JPEG", exif=THUMBNAIL[: len(JPEG) // 2]),
    "corrupt exif": file_of(NOISE, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
    "upright": file_of(NOISE, "JPEG", exif=exif_of([(0x0112, 3, 1, struct.pack("<I", 1))])),
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_what_is_plain_already_stays_byte_for_byte(data):
    assert encode(data) == data
    assert encode(data, resize=24) == data  # its short side


def indexed():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    return image


def bits():
    image = Image.new("1", (4, 1))
    image.putdata([0, 1, 0, 1])
    return image


def animated(kind):
    frames = [Image.new("RGB", (1, 1), colour) for colour in ("red", "green", "blue")]
    return file_of(frames[0], kind, save_all=True, append_images=frames[1:])


LEVELS = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
SCALED = [[v] * 3 for v in (0, 0, 1, 1, 128, 255)]  # level / 257, to the nearest
RGBA = np.array([[[200, 100, 0, 255], [200, 100, 0, 51], [200, 100, 0, 0]]], np.uint8)
GREY_ALPHA = np.array([[[100, 51], [100, 255]]], np.uint8)
COLOURS = struct.pack(">6H", 0xFFFF, 0x8000, 0x0100, 0, 0x00FF, 0x7FFF)
BLACK = Image.new("RGB", (1, 1))
INKS = np.full((1, 1, 4), (100, 50, 200, 60), np.uint8)
CHANGED = {
    "16-bit png": (file_of(Image.fromarray(LEVELS)), "PNG", SCALED, 0),
    "16-bit tiff": (file_of(Image.fromarray(LEVELS), "TIFF"), "PNG", SCALED, 0),
    "32-bit tiff": (file_of(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), "PNG", SCALED, 0),
    "16 bits a colour": (
        png(2, 1, 16, 2, b"\x00" + COLOURS), "PNG", [[255, 128, 1], [0, 0, 127]], 0,
    ),
    "palette": (file_of(indexed()), "PNG", [[70, 80, 90], [10, 20, 30], [40, 50, 60]], 0),
    "palette with a hole": (
        file_of(indexed(), transparency=0), "PNG", [[70, 80, 90], [255] * 3, [40, 50, 60]], 0,
    ),
    # 51 is a fifth of 255: 0.2 * 200 + 0.8 * 255 = 244, and so on
    "alpha": (file_of(RGBA), "PNG", [[200, 100, 0], [244, 224, 204], [255] * 3], 0),
    "grey alpha": (file_of(Image.fromarray(GREY_ALPHA)), "PNG", [[224] * 3, [100] * 3], 0),
    "key colour": (
        file_of(RGBA[..., :3], transparency=(200, 100, 0)), "PNG", [[255] * 3] * 3, 0,
    ),
    "four inks": (  # the paper: (255 - ink) * (255 - 60) / 255
        file_of(Image.fromarray(INKS, "CMYK"), "JPEG", quality=100), "JPEG", [[118, 157, 42]], 3,
    ),
    "gif": (animated("GIF"), "PNG", [[255, 0, 0]], 0),
    "apng": (animated("PNG"), "PNG", [[255, 0, 0]], 0),
    "webp": (animated("WEBP"), "JPEG", [[255, 0, 0]], 3),
    "tiff": (animated("TIFF"), "PNG", [[255, 0, 0]], 0),
    "bmp": (file_of(NOISE[:1], "BMP"), "PNG", NOISE[0].tolist(), 0),
    "1 bit": (file_of(bits()), "PNG", [[0] * 3, [255] * 3] * 2, 0),
    "lossless webp": (file_of(BLACK, "WEBP", lossless=True), "JPEG", [[0] * 3], 3),
    "lab": (file_of(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF"), "PNG", [[255] * 3], 1),
}  # fmt: skip


@pytest.mark.parametrize(("data", "kind", "expected", "within"), CHANGED.values(), ids=CHANGED)
def test_what_is_not_plain_becomes_eight_bits_of_rgb_on_white(data, kind, expected, within):
    encoded = encode(data)
    assert opened(encoded).format == kind
    assert np.abs(pixels(encoded)[0].astype(int) - expected).max() <= within
    assert np.array_equal(np.asarray(decode(data)), pixels(encoded)) or kind == "JPEG"


def test_each_orientation_is_undone():
    by_hand = {
        2: NOISE[:, ::-1], 3: NOISE[::-1, ::-1], 4: NOISE[::-1], 5: NOISE.swapaxes(0, 1),
        6: np.rot90(NOISE, -1), 7: np.rot90(NOISE, 2).swapaxes(0, 1), 8: np.rot90(NOISE),
    }  # fmt: skip
    for orientation, expected in by_hand.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = file_of(NOISE, exif=exif)
        assert np.array_equal(pixels(encode(data)), expected)
        assert np.array_equal(np.asarray(decode(data)), expected)
        assert encode(encode(data)) == encode(data)  # nothing is turned twice
    assert pixels(encode(file_of(NOISE, "JPEG", exif=ROTATED))).shape == (32, 24, 3)


def test_the_short_side_is_made_smaller_and_never_larger():
    wide = Image.fromarray(RNG.integers(0, 256, (60, 101, 3), dtype=np.uint8))
    encoded = encode(file_of(wide), resize=30)
    assert opened(encoded).format == "JPEG"
    directly = wide.resize((50, 30), Image.Resampling.BICUBIC)
    assert encoded == file_of(directly, "JPEG", quality=90, subsampling="4:2:0")
    tall = encode(file_of(wide.rotate(90, expand=True), "JPEG"), resize=30)
    assert pixels(tall).shape == (50, 30, 3)
    small = file_of(wide, "JPEG")
    assert encode(small, resize=61) == small


BAD = {
    "empty": (b"", "not an image"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "head of a jpeg": (JPEG[:40], "truncated"),
    "jpeg without end": (JPEG[:-2], "truncated"),
    "jpeg without its last bytes": (JPEG[:-20], "truncated"),
    # Pillow decodes it to its end.
    "large jpeg of zeros": (LARGE[: len(LARGE) // 2] + bytes(len(LARGE) // 2), "truncated"),
    "progressive without end": (PROGRESSIVE[:-2], "truncated"),
    "only a thumbnail ends": (file_of(NOISE, "JPEG", exif=THUMBNAIL)[:-2], "truncated"),
    "half a png": (PNG[: len(PNG) // 2], "truncated"),
    "corrupt png": (PNG[:60] + bytes(80) + PNG[140:], "truncated"),
    "half a gif": (GIF[: len(GIF) // 2], "truncated"),
    "half a webp": (WEBP[:200], "truncated"),
    "floats": (file_of(Image.fromarray(NOISE[..., 0].astype(np.float32)), "TIFF"), "mode F"),
    "more than 16 bits": (
        file_of(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF"), "mode I",
    ),
    "Pillow warns of its size": (png(9_500, 9_500, 8, 2, bytes(100)), "too large"),
    "Pillow refuses its size": (png(14_000, 14_000, 8, 2, bytes(100)), "too large"),
    "high for a jpeg": (file_of(Image.new("L", (66_000, 110)), "JPEG2000"), "cannot be encoded"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "kind"), BAD.values(), ids=BAD)
def test_what_cannot_be_decoded_to_its_end_or_stored_is_bad(data, kind):
    with pytest.raises(BadImage) as found:
        encode(data)
    assert str(found.value).startswith(f"{kind}:")
    assert "\n" not in str(found.value)


def test_warnings_that_another_thread_ignores_do_not_let_a_large_image_in(monkeypatch):
    jpeg = file_of(Image.new("RGB", (40, 30)), "JPEG")
    encode(jpeg)
    monkeypatch.setattr(warnings, "simplefilter", lambda *_: None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30 - 1)
    with pytest.raises(BadImage, match="too large: 40 x 30 pixels"):
        encode(jpeg)


def test_a_colour_profile_is_dropped_from_what_is_encoded_again():
    assert "icc_profile" not in opened(encode(PLAIN["png with profile"], resize=8)).info


def test_an_image_too_thin_for_the_resizing_of_evaluation_is_bad():
    """Of a model of 336 pixels, whose short side becomes 384."""
    longest = file_of(Image.new("RGB", (2, 1_200)))
    assert encode(longest) == longest
    assert 384 * 384 * 600 < Image.MAX_IMAGE_PIXELS < 384 * 384 * 610
    for size in ((2, 1_201), (1_201, 2)):
        with pytest.raises(BadImage, match=f"too thin: {size[0]} x {size[1]} pixels"):
            encode(file_of(Image.new("RGB", size)))
