"""`decode_image`: pixels as people see them, limits first, and ImageRejected as the only way to fail."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from embed.decoding import MAX_PIXELS, ImageHeader, ImageLimits, decode_image, read_header
from embed.errors import ImageRejected, RejectReason
from embed.preprocessing import to_square

WIDTH, HEIGHT = 24, 16


def picture() -> NDArray[np.uint8]:
    """Smooth colours without any symmetry, `(HEIGHT, WIDTH, 3)`."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 10, y * 15, 255 - x * 5 - y * 5], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, bit_depth: int = 8, color_type: int = 2, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def rejection(content: bytes, limits: ImageLimits | None = None) -> ImageRejected:
    with pytest.raises(ImageRejected) as rejected:
        decode_image(content, limits or ImageLimits())
    return rejected.value


SAMPLES = {
    "jpeg": encoded(Image.fromarray(picture()), "JPEG", quality=95, subsampling=0),
    "progressive jpeg": encoded(Image.fromarray(picture()), "JPEG", progressive=True, exif=exif(6)),
    "cmyk jpeg": encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95),
    "png": encoded(Image.fromarray(picture()), "PNG"),
    "palette png": encoded(Image.fromarray(picture()).convert("P"), "PNG"),
    "webp": encoded(Image.fromarray(picture()), "WEBP", exif=exif(3)),
    "gif": encoded(Image.fromarray(picture()).convert("P"), "GIF"),
    "bmp": encoded(Image.fromarray(picture()), "BMP"),
    "tiff": encoded(Image.fromarray(picture()), "TIFF"),
    "lzw tiff": encoded(Image.fromarray(picture()), "TIFF", compression="tiff_lzw"),
    "deflate tiff": encoded(Image.fromarray(picture()), "TIFF", compression="tiff_adobe_deflate", exif=exif(8)),
    "jpeg tiff": encoded(Image.fromarray(picture()), "TIFF", compression="jpeg"),
    "fax tiff": encoded(Image.fromarray(picture()).convert("1"), "TIFF", compression="group4"),
}


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_give_the_very_pixels(image_format: str, options: dict[str, Any]) -> None:
    """What was saved without loss is decoded without loss."""
    assert np.array_equal(decode_image(encoded(Image.fromarray(picture()), image_format, **options)), picture())


def test_jpeg_gives_nearly_the_pixels() -> None:
    """A JPEG of high quality differs from its source by rounding only."""
    difference = np.abs(decode_image(SAMPLES["jpeg"]).astype(int) - picture())

    assert difference.max() <= 8


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(image_format: str, orientation: int) -> None:
    """A picture stored turned, with EXIF that says so, is decoded upright, and its header tells the upright size."""
    turned = {
        1: picture(),
        2: picture()[:, ::-1],
        3: picture()[::-1, ::-1],
        4: picture()[::-1],
        5: picture().transpose(1, 0, 2),
        6: np.rot90(picture(), 1),
        7: picture()[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture(), -1),
    }[orientation]
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if image_format == "JPEG" else {"lossless": True}
    content = encoded(Image.fromarray(np.ascontiguousarray(turned)), image_format, exif=exif(orientation), **options)

    pixels = decode_image(content)

    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels.astype(int) - picture()).max() <= 8
    assert read_header(content).width == WIDTH


@pytest.mark.parametrize(
    ("image", "image_format"),
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "WEBP"),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "TIFF"),
        (Image.new("LA", (4, 4), (0, 0)), "PNG"),
        (Image.new("PA", (4, 4), (0, 0)).convert("RGBA"), "GIF"),
    ],
)
def test_transparent_pixels_become_white(image: Image.Image, image_format: str) -> None:
    """A picture is flattened on white, whatever colour hides under its transparent parts."""
    assert (
        decode_image(
            encoded(image, image_format, **({"lossless": True, "exact": True} if image_format == "WEBP" else {}))
        ).min()
        == 255
    )


def test_half_transparent_pixels_are_blended_with_white() -> None:
    """Alpha 128 over black is middle gray."""
    pixels = decode_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))

    assert pixels.min() == pixels.max() == 127


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_colour_becomes_white(mode: str) -> None:
    """A colour or palette entry that the PNG declares transparent is white."""
    image = Image.new(mode, (4, 4), 0)
    transparent: Any = (0, 0, 0) if mode == "RGB" else 0

    assert decode_image(encoded(image, "PNG", transparency=transparent)).min() == 255


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_to_8(image_format: str) -> None:
    """65,535 is white, 32,768 is middle gray: the upper 8 bits count, nothing is clipped."""
    values = np.array([[0, 32_768, 65_535]], dtype=np.uint16)

    pixels = decode_image(encoded(Image.fromarray(values), image_format))

    assert pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 1, 2]], np.float32) / 2, [0, 128, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 1_000_000, 2_550_000]], np.int32), [0, 100, 255]),
        (np.array([[0, 0, 0]], np.int32), [0, 0, 0]),
    ],
)
def test_deep_gray_is_scaled_to_8_bits(values: NDArray[Any], expected: list[int]) -> None:
    """32-bit integers and floats are scaled by the usual range that holds them, else by their own."""
    assert decode_image(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(image_format: str) -> None:
    """Pure cyan ink decodes to cyan, not to its negative."""
    pixels = decode_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), image_format))

    assert np.abs(pixels.astype(int) - [0, 255, 255]).max() <= 3


def test_lab_becomes_rgb() -> None:
    """A TIFF in CIELAB decodes to the sRGB colours it was made of."""
    srgb, lab = (ImageCms.ImageCmsProfile(ImageCms.createProfile(space)) for space in ("sRGB", "LAB"))
    image = ImageCms.ImageCmsTransform(srgb, lab, "RGB", "LAB").apply(Image.fromarray(picture() // 2 + 64))

    assert np.abs(decode_image(encoded(image, "TIFF")).astype(int) - (picture() // 2 + 64)).max() <= 10


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(image_format: str) -> None:
    """Later frames and pages are ignored."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    content = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])

    assert np.abs(decode_image(content).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (1, 1)])
def test_extremely_thin_images_decode_and_become_squares(shape: tuple[int, int]) -> None:
    """A line of pixels is an image like any other."""
    content = encoded(Image.new("RGB", shape, (9, 99, 199)), "PNG")

    assert to_square(decode_image(content), 96).reshape(-1, 3).mean(axis=0).tolist() == [9, 99, 199]


@pytest.mark.parametrize(
    ("min_side", "expected"), [(1, (32, 48)), (64, (64, 96)), (65, (128, 192)), (9_999, (256, 384))]
)
def test_min_side_bounds_the_reduced_jpeg(min_side: int, expected: tuple[int, int]) -> None:
    """A JPEG comes at the smallest of its 1/1, 1/2, 1/4 and 1/8 sizes with both sides at least `min_side`."""
    content = encoded(Image.new("RGB", (384, 256), "teal"), "JPEG")

    assert decode_image(content, min_side=min_side).shape[:2] == expected


def test_a_huge_png_is_rejected_within_milliseconds() -> None:
    """50,000 x 50,000 pixels in 100 kB are refused from the header, before anything is inflated."""
    content = png(50_000, 50_000, pixels=bytes(100_000_000))
    start = time.perf_counter()

    rejected = rejection(content)

    assert rejected.reason == RejectReason.TOO_MANY_PIXELS
    assert "50,000 x 50,000" in rejected.detail
    assert time.perf_counter() - start < 0.1


def test_limits_hold_at_their_exact_value() -> None:
    """An image of exactly `max_bytes` and `max_pixels` is accepted, one more is not."""
    content = SAMPLES["png"]

    decode_image(content, ImageLimits(max_bytes=len(content), max_pixels=WIDTH * HEIGHT))
    assert rejection(content, ImageLimits(max_bytes=len(content) - 1)).reason == RejectReason.TOO_MANY_BYTES
    assert rejection(content, ImageLimits(max_pixels=WIDTH * HEIGHT - 1)).reason == RejectReason.TOO_MANY_PIXELS


def test_a_tiff_of_one_pixel_with_a_huge_tile_is_rejected() -> None:
    """A tile larger than the pixel limit is refused, because a decoder would allocate it."""
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (322, 4, 1, 65_536), (323, 4, 1, 65_536)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)

    assert rejection(b"II*\0" + struct.pack("<IH", 8, 4) + directory + bytes(64)).reason == RejectReason.TOO_MANY_PIXELS


def test_png_text_bombs_are_never_inflated() -> None:
    """Compressed text that would fill memory is dropped, and the picture decodes."""
    bomb = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20_000_000)))
    content = SAMPLES["png"]

    assert np.array_equal(decode_image(content[:33] + bomb * 8 + content[33:]), picture())


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": 0}, {"max_pixels": MAX_PIXELS + 1}])
def test_limits_out_of_range_are_refused(limits: dict[str, int]) -> None:
    """A limit that could accept nothing, or that Pillow would not honour, is an error that names its range."""
    with pytest.raises(ValueError, match=r"out of range 1\.\."):
        ImageLimits(**limits)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", RejectReason.EMPTY),
        (b"not an image at all", RejectReason.UNKNOWN_FORMAT),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", RejectReason.UNKNOWN_FORMAT),
        (SAMPLES["jpeg"][: len(SAMPLES["jpeg"]) // 2], RejectReason.TRUNCATED),
        (SAMPLES["png"][: len(SAMPLES["png"]) // 2], RejectReason.TRUNCATED),
        (SAMPLES["webp"][: len(SAMPLES["webp"]) // 2], RejectReason.TRUNCATED),
        (SAMPLES["bmp"][: len(SAMPLES["bmp"]) // 2], RejectReason.TRUNCATED),
        (SAMPLES["gif"][: len(SAMPLES["gif"]) // 2], RejectReason.TRUNCATED),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), RejectReason.TRUNCATED),
        (png(0, 5), RejectReason.CORRUPT),
        (png(4, 4, bit_depth=7), RejectReason.CORRUPT),
    ],
)
def test_each_kind_of_bad_file_has_its_reason(content: bytes, reason: RejectReason) -> None:
    """The reason in `rejects` tells what is wrong with the file."""
    rejected = rejection(content)

    assert rejected.reason == reason
    assert rejected.detail


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLES)),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12),
    keep=st.floats(0, 1),
    header_only=st.booleans(),
)
def test_damaged_files_raise_only_image_rejected(
    name: str, edits: list[tuple[int, int]], keep: float, header_only: bool
) -> None:
    """Whatever bytes are changed or cut off, a picture comes out or ImageRejected, never anything else."""
    damaged = bytearray(SAMPLES[name])
    for place, value in edits:
        damaged[place % (min(len(damaged), 120) if header_only else len(damaged))] = value
    content = bytes(damaged if keep > 0.5 else damaged[: int(len(damaged) * keep * 2)])

    try:
        pixels = decode_image(content, ImageLimits(max_pixels=1_000_000), min_side=8)
    except ImageRejected as rejected:
        assert rejected.detail  # noqa: PT017 - either outcome is right
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)


@given(content=st.binary(max_size=200))
def test_random_bytes_raise_only_image_rejected(content: bytes) -> None:
    """Bytes that were never an image are rejected."""
    assert rejection(content).reason in (
        RejectReason.EMPTY,
        RejectReason.UNKNOWN_FORMAT,
        RejectReason.TRUNCATED,
        RejectReason.CORRUPT,
    )


def test_damaged_files_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither Pillow nor the C libraries below it write to the terminal about bad files."""
    for content in SAMPLES.values():
        for place in range(8, len(content), 7):
            damaged = content[:place] + b"\xff\xff" + content[place + 2 :]
            try:
                decode_image(damaged, ImageLimits(max_pixels=1_000_000))
            except ImageRejected:
                continue

    assert capfd.readouterr() == ("", "")


def test_decoding_from_many_threads_gives_the_same_pixels() -> None:
    """Threads share nothing: eight at once decode what one does."""
    contents = list(SAMPLES.values()) * 8
    alone = [decode_image(content).tobytes() for content in contents]

    with ThreadPoolExecutor(8) as pool:
        together = [pixels.tobytes() for pixels in pool.map(decode_image, contents)]

    assert together == alone


def test_a_rejection_survives_pickling() -> None:
    """A rejection crosses process borders with its reason and detail."""
    rejected = pickle.loads(pickle.dumps(ImageRejected(RejectReason.CORRUPT, "bad")))  # noqa: S301

    assert (rejected.reason, rejected.detail, str(rejected)) == (RejectReason.CORRUPT, "bad", "corrupt: bad")


def test_header_of_a_turned_picture_is_upright() -> None:
    """`read_header` gives the size as displayed."""
    assert read_header(SAMPLES["progressive jpeg"]) == ImageHeader(HEIGHT, WIDTH, "JPEG")


def test_decoding_imports_no_keras() -> None:
    """Whoever only decodes does not pay for Keras."""
    code = "import sys, embed.decoding, embed.embedder; print({'keras', 'tensorflow'} & set(sys.modules))"

    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
