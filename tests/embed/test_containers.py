"""`containers`: sizes and orientation from bytes, and only the essential bytes kept."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from embed.containers import MAX_JPEG_SCANS, MAX_RUN_LENGTH_BMP_BYTES, exif_orientation, read_container
from embed.errors import ImageRejected, RejectReason


def encoded(image_format: str, *, size: tuple[int, int] = (7, 5), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 128 if mode == "L" else "orange").save(buffer, image_format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


@pytest.mark.parametrize(
    ("image_format", "name", "options"),
    [
        ("JPEG", "JPEG", {}),
        ("JPEG", "JPEG", {"progressive": True}),
        ("PNG", "PNG", {}),
        ("WEBP", "WebP", {}),
        ("WEBP", "WebP", {"lossless": True}),
        ("WEBP", "WebP", {"exif": exif(1)}),
        ("GIF", "GIF", {}),
        ("BMP", "BMP", {}),
        ("TIFF", "TIFF", {}),
        ("TIFF", "TIFF", {"big_tiff": True}),
    ],
)
def test_size_is_read_from_every_format(image_format: str, name: str, options: dict[str, Any]) -> None:
    """Width, height and format come from the bytes of the header."""
    container = read_container(encoded(image_format, size=(7, 5), **options))

    assert (container.format, container.width, container.height) == (name, 7, 5)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_read_from_every_format_that_has_it(image_format: str, orientation: int) -> None:
    """EXIF orientation 1..8 is found wherever the format keeps it."""
    assert read_container(encoded(image_format, exif=exif(orientation))).orientation == orientation


def test_damaged_exif_means_upright() -> None:
    """An EXIF block that ends early, points outside itself or gives an unknown value counts as orientation 1."""
    whole = bytes.fromhex("49492a0008000000 0100 1201 0300 01000000 06000000")

    assert exif_orientation(whole) == 6
    assert {exif_orientation(whole[:length]) for length in range(len(whole) - 2)} == {1}
    assert exif_orientation(whole[:4] + b"\xff\xff\xff\xff" + whole[8:]) == 1
    assert exif_orientation(whole[:-4] + b"\x09\0\0\0") == 1


def test_jpeg_metadata_is_left_out() -> None:
    """A JPEG's EXIF, comments and profiles are not among its essential bytes."""
    content = encoded("JPEG", exif=exif(3), comment=b"secret comment", icc_profile=b"secret profile")

    essential = b"".join(read_container(content).essential)

    assert b"secret" in content
    assert b"secret" not in essential
    assert b"Exif" not in essential


def test_png_keeps_only_what_decides_the_first_frame() -> None:
    """A PNG's text, profiles and animation frames are not among its essential bytes."""
    still = encoded("PNG")
    noisy = still[:33] + png_chunk(b"tEXt", b"a\0b") + png_chunk(b"acTL", b"\0" * 8) + still[33:]

    assert b"".join(read_container(noisy).essential) == still


def test_gif_comments_are_left_out() -> None:
    """A GIF's comments before the first frame are not among its essential bytes."""
    content = encoded("GIF", mode="L", comment=b"secret")

    assert b"secret" in content
    assert b"secret" not in b"".join(read_container(content).essential)


def test_tiff_directory_keeps_only_what_decides_pixels() -> None:
    """Entries such as EXIF pointers are replaced, so no decoder follows them."""
    content = encoded("TIFF", exif=exif(6), tiffinfo={270: "secret description"})

    with Image.open(io.BytesIO(b"".join(read_container(content).essential))) as picture:
        assert not {270, 274, 34665} & set(picture.getexif())


def test_tiff_directory_that_claims_more_than_the_file_is_corrupt() -> None:
    """Tags whose values would together exceed the file are refused before they are read."""
    entries = [(256, 3, 1, 4), (257, 3, 1, 4)] + [(320, 7, 200_000, 0)] * 20
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    content = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(10_000)

    with pytest.raises(ImageRejected, match="claims 4000004 bytes") as rejected:
        read_container(content)
    assert rejected.value.reason == RejectReason.CORRUPT


def test_progressive_jpeg_with_endless_scans_is_corrupt() -> None:
    """More scans than any encoder writes are refused, because each costs a pass over the whole picture."""
    content = encoded("JPEG", progressive=True)
    scan = content.rindex(b"\xff\xda")
    bomb = content[:scan] + content[scan:-2] * (MAX_JPEG_SCANS + 1) + b"\xff\xd9"

    with pytest.raises(ImageRejected, match="scans"):
        read_container(bomb)


def test_a_large_run_length_bmp_is_unsupported() -> None:
    """Run-length coded BMPs are decoded slowly, so large ones are refused from the header."""
    header = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + struct.pack("<IiiHHI", 40, 9, 9, 1, 8, 1)

    with pytest.raises(ImageRejected, match="run-length") as rejected:
        read_container(header + bytes(MAX_RUN_LENGTH_BMP_BYTES))
    assert rejected.value.reason == RejectReason.UNSUPPORTED


@pytest.mark.parametrize("start", [b"%PDF-1.7 something", b"hello world, this is text", b"\0\0\0\x20ftypavif", b"R"])
def test_other_files_are_of_unknown_format(start: bytes) -> None:
    """A file is recognised by its first bytes alone, whatever its name."""
    with pytest.raises(ImageRejected) as rejected:
        read_container(start)
    assert rejected.value.reason == RejectReason.UNKNOWN_FORMAT


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_cut_of_a_header_is_rejected_or_read(image_format: str) -> None:
    """However early a file ends, reading its header raises nothing but ImageRejected."""
    content = encoded(image_format)

    for length in range(len(content)):
        try:
            container = read_container(content[:length])
        except ImageRejected as rejected:
            assert rejected.detail  # noqa: PT017 - either outcome is right
        else:
            assert (container.width, container.height) == (7, 5)
