"""What becomes of images of every kind, against pixels computed by hand."""

import io
import struct
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


def pixels(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image)


def format_of(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.format


def png(width, height, depth, colour, rows):
    """A PNG written by hand: what Pillow cannot write itself."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(JPEG, id="jpeg"),
        pytest.param(PROGRESSIVE, id="progressive jpeg"),
        pytest.param(file_of(NOISE[..., 0], "JPEG"), id="grey jpeg"),
        pytest.param(PNG, id="png"),
        pytest.param(file_of(NOISE[..., 0], "PNG"), id="grey png"),
        pytest.param(
            file_of(NOISE, "MPO", save_all=True, append_images=[Image.fromarray(NOISE[::-1])]),
            id="mpo",
        ),
        pytest.param(file_of(NOISE, "JPEG", restart_marker_blocks=1), id="restarts"),
        pytest.param(JPEG[:-2] + b"\xff\xff\xff\xd9", id="fill that the standard allows"),
        pytest.param(JPEG[:2] + b"\xff\xfe\x00\x06\xff\xd9\xff\xd9" + JPEG[2:], id="comment"),
        pytest.param(JPEG + b"\x00" * 100, id="zeros after the end"),
        pytest.param(JPEG + b"SEFT\xff\xda\x00\x10 left by a camera", id="trailer"),
        pytest.param(PROGRESSIVE + JPEG[: len(JPEG) // 2], id="preview after the end"),
        pytest.param(file_of(NOISE, "JPEG", exif=THUMBNAIL[: len(JPEG) // 2]), id="thumbnail"),
        pytest.param(
            file_of(NOISE, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"), id="corrupt exif"
        ),
    ],
)
def test_what_is_plain_already_stays_byte_for_byte(data):
    assert encode(data) == data
    assert encode(data, resize=24) == data  # its short side


def test_an_image_of_four_inks_becomes_rgb():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:] = (100, 50, 200, 60)
    encoded = encode(file_of(Image.fromarray(inks, "CMYK"), "JPEG", quality=100))
    assert format_of(encoded) == "JPEG"
    paper = [(255 - ink) * (255 - 60) / 255 for ink in (100, 50, 200)]  # 118.5, 156.8, 42.1
    assert np.abs(pixels(encoded) - np.array(paper)).max() <= 3
    assert pixels(encoded).shape == (16, 16, 3)


def test_sixteen_bits_are_scaled_and_not_clipped():
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    by_hand = [0, 0, 1, 1, 128, 255]  # level / 257, to the nearest
    for data in (
        file_of(Image.fromarray(levels), "PNG"),
        file_of(Image.fromarray(levels), "TIFF"),
        file_of(Image.fromarray(levels.astype(np.int32)), "TIFF"),
    ):
        encoded = encode(data)
        assert format_of(encoded) == "PNG"
        assert pixels(encoded)[0].tolist() == [[value] * 3 for value in by_hand]
    too_wide = file_of(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF")
    with pytest.raises(BadImage, match="mode I: integers of more than 16 bits"):
        encode(too_wide)


def test_sixteen_bits_a_colour_become_eight():
    row = b"\x00" + struct.pack(">6H", 0xFFFF, 0x8000, 0x0100, 0, 0x00FF, 0x7FFF)
    encoded = encode(png(2, 1, 16, 2, row))
    assert pixels(encoded)[0].tolist() == [[255, 128, 1], [0, 0, 127]]


def test_palettes_are_looked_up_with_and_without_transparency():
    indexed = Image.new("P", (3, 1))
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    indexed.putdata([2, 0, 1])
    plain = encode(file_of(indexed, "PNG"))
    assert pixels(plain)[0].tolist() == [[70, 80, 90], [10, 20, 30], [40, 50, 60]]
    holes = encode(file_of(indexed, "PNG", transparency=0))
    assert pixels(holes)[0].tolist() == [[70, 80, 90], [255, 255, 255], [40, 50, 60]]


def test_what_is_transparent_is_laid_over_white():
    colour = np.array([[[200, 100, 0, 255], [200, 100, 0, 51], [200, 100, 0, 0]]], np.uint8)
    encoded = encode(file_of(Image.fromarray(colour), "PNG"))
    # 51 is a fifth of 255: 0.2 * 200 + 0.8 * 255 = 244, and so on
    assert pixels(encoded)[0].tolist() == [[200, 100, 0], [244, 224, 204], [255, 255, 255]]
    grey = np.array([[[100, 51], [100, 255]]], np.uint8)
    encoded = encode(file_of(Image.fromarray(grey), "PNG"))
    assert pixels(encoded)[0].tolist() == [[224] * 3, [100] * 3]
    keyed = file_of(Image.fromarray(colour[..., :3]), "PNG", transparency=(200, 100, 0))
    assert pixels(encode(keyed)).min() == 255


@pytest.mark.parametrize(
    ("file_format", "stored"),
    [("GIF", "PNG"), ("PNG", "PNG"), ("WEBP", "JPEG"), ("TIFF", "PNG")],
)
def test_of_an_animation_the_first_frame_is_taken(file_format, stored):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    data = file_of(frames[0], file_format, save_all=True, append_images=frames[1:])
    encoded = encode(data)
    assert format_of(encoded) == stored
    assert np.abs(pixels(encoded).astype(int) - (255, 0, 0)).max() <= 3


def test_other_formats_and_modes_become_rgb():
    bitmap = encode(file_of(NOISE, "BMP"))
    assert format_of(bitmap) == "PNG"
    assert np.array_equal(pixels(bitmap), NOISE)
    black_and_white = Image.new("1", (8, 1))
    black_and_white.putdata([0, 1] * 4)
    one_bit = encode(file_of(black_and_white, "PNG"))
    assert pixels(one_bit)[0].tolist() == [[0] * 3, [255] * 3] * 4
    webp = encode(file_of(NOISE, "WEBP", lossless=True))
    assert format_of(webp) == "JPEG"
    with pytest.raises(BadImage, match="mode F"):
        encode(file_of(Image.fromarray(NOISE[..., 0].astype(np.float32)), "TIFF"))
    white = encode(file_of(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF"))
    assert pixels(white).min() >= 254


def test_a_border_is_cut_off_every_side():
    encoded = encode(file_of(NOISE, "PNG"), border=2)
    assert np.array_equal(pixels(encoded), NOISE[2:-2, 2:-2])
    with pytest.raises(BadImage, match="too small: 32 x 24 pixels, a border of 12"):
        encode(file_of(NOISE, "PNG"), border=12)


def test_the_short_side_is_made_smaller_and_never_larger():
    wide = Image.fromarray(RNG.integers(0, 256, (60, 101, 3), dtype=np.uint8))
    encoded = encode(file_of(wide, "PNG"), resize=30)
    assert format_of(encoded) == "JPEG"
    assert pixels(encoded).shape == (30, 50, 3)
    directly = np.asarray(wide.resize((50, 30), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(encoded) - directly).mean() < 4  # what the JPEG costs
    tall = encode(file_of(wide.rotate(90, expand=True), "JPEG"), resize=30)
    assert pixels(tall).shape == (50, 30, 3)
    small = file_of(wide, "JPEG")
    assert encode(small, resize=61) == small


def test_chroma_is_kept_at_full_resolution():
    with Image.open(io.BytesIO(encode(file_of(NOISE, "PNG"), resize=20))) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


def test_a_colour_profile_goes_when_the_pixels_are_encoded_again():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = file_of(NOISE, "PNG", icc_profile=profile)
    assert encode(data) == data
    with Image.open(io.BytesIO(encode(data, border=1))) as image:
        assert "icc_profile" not in image.info


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"", "not an image", id="empty"),
        pytest.param(b"<html>404 not found</html>", "not an image", id="text"),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", id="eps"
        ),
        pytest.param(bytes(4096), "not an image", id="zeros"),
        pytest.param(JPEG[: len(JPEG) // 2], "truncated", id="half a jpeg"),
        pytest.param(JPEG[:40], "truncated", id="head of a jpeg"),
        pytest.param(JPEG[:-2], "truncated", id="jpeg without end"),
        pytest.param(JPEG[:-20], "truncated", id="jpeg without its last bytes"),
        pytest.param(
            JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2), "truncated", id="jpeg of zeros"
        ),
        pytest.param(  # which Pillow decodes to its end
            LARGE[: len(LARGE) // 2] + bytes(len(LARGE) // 2), "truncated", id="large jpeg of zeros"
        ),
        pytest.param(PROGRESSIVE[:-2], "truncated", id="progressive without end"),
        pytest.param(
            file_of(NOISE, "JPEG", exif=THUMBNAIL)[:-2], "truncated", id="only a thumbnail ends"
        ),
        pytest.param(PNG[: len(PNG) // 2], "truncated", id="half a png"),
        pytest.param(PNG[:20], "truncated", id="head of a png"),
        pytest.param(PNG[:60] + bytes(80) + PNG[140:], "truncated", id="corrupt png"),
        pytest.param(GIF[: len(GIF) // 2], "truncated", id="half a gif"),
        pytest.param(WEBP[:200], "truncated", id="half a webp"),
    ],
)
def test_what_cannot_be_decoded_to_its_end_is_bad(data, kind):
    with pytest.raises(BadImage) as found:
        encode(data)
    assert str(found.value).startswith(f"{kind}:")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("side", [9_500, 14_000], ids=["Pillow warns", "Pillow refuses"])
def test_an_image_of_too_many_pixels_is_bad_before_it_is_decoded(side):
    bomb = png(side, side, 8, 2, bytes(100))
    with pytest.raises(BadImage, match="too large"):
        encode(bomb)


def test_a_strip_that_no_jpeg_can_hold_is_bad_and_stops_nothing():
    strip = file_of(Image.new("RGB", (30, 10_000)), "PNG")
    assert pixels(encode(strip, resize=20)).shape == (6_666, 20, 3)
    with pytest.raises(BadImage, match="cannot be encoded"):
        encode(file_of(Image.new("L", (121, 66_100)), "PNG"), resize=120)
    with pytest.raises(BadImage, match="cannot be encoded"):
        encode(file_of(Image.new("L", (66_000, 110)), "JPEG2000"))


def test_an_image_too_thin_for_the_resizing_of_evaluation_is_bad():
    """Of a model of 336 pixels, whose short side becomes 384."""
    longest = file_of(Image.new("RGB", (2, 1_200)), "PNG")
    assert encode(longest) == longest
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 384 * 384 * 600 < Image.MAX_IMAGE_PIXELS < 384 * 384 * 610
    for size in ((2, 1_201), (1_201, 2)):
        with pytest.raises(BadImage, match=f"too thin: {size[0]} x {size[1]} pixels"):
            encode(file_of(Image.new("RGB", size), "PNG"))
    with pytest.raises(BadImage, match="too thin: 1 x 702 pixels"):
        encode(file_of(Image.new("RGB", (5, 706)), "PNG"), border=2)


def test_each_orientation_is_undone():
    by_hand = {
        2: NOISE[:, ::-1], 3: NOISE[::-1, ::-1], 4: NOISE[::-1], 5: NOISE.swapaxes(0, 1),
        6: np.rot90(NOISE, -1), 7: np.rot90(NOISE, 2).swapaxes(0, 1), 8: np.rot90(NOISE),
    }  # fmt: skip
    for orientation, expected in by_hand.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        encoded = encode(file_of(NOISE, "PNG", exif=exif))
        assert np.array_equal(pixels(encoded), expected)
        assert encode(encoded) == encoded  # nothing is turned twice
    exif[0x0112] = 1
    upright = file_of(NOISE, "JPEG", exif=exif)
    assert encode(upright) == upright


def test_other_notes_that_are_malformed_do_not_keep_an_image_from_being_turned():
    tags = [(0x0112, 3, 1, struct.pack("<I", 6)), (0x8769, 2, 4, b"abcd")]
    encoded = encode(file_of(NOISE, "JPEG", exif=exif_of(tags)))
    assert pixels(encoded).shape == (32, 24, 3)


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        file_of(NOISE[..., 0]),
        file_of(Image.fromarray(NOISE).quantize(4)),
        file_of(np.dstack([NOISE, NOISE[..., 0]])),
        file_of(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)),
        file_of(NOISE, exif=exif_of([(0x0112, 3, 1, struct.pack("<I", 8))])),
    ],
    ids=["jpeg", "grey", "palette", "transparent", "16-bit", "rotated"],
)
def test_an_image_is_decoded_as_it_would_be_stored(data):
    with Image.open(io.BytesIO(encode(data))) as stored:
        assert np.array_equal(np.asarray(decode(data)), np.asarray(stored.convert("RGB")))
