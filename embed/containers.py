"""Image files before their pixels: format, size, orientation, and only the bytes that decide the first frame.

Sits below `decoding`, in front of Pillow. Everything a decoder does not need (EXIF, ICC and XMP blocks, comments, text
chunks, further frames, directories that point at each other) is left out of `essential`, so none of it can cost time
or memory, and the size is known before a decoder is started. Nothing here allocates more than the file's own length.

Sources: JPEG, ITU-T T.81 annex B; PNG, W3C PNG third edition; GIF89a; RIFF/WebP, RFC 9649; TIFF 6.0 and BigTIFF;
Windows BITMAPINFOHEADER; EXIF 2.32, tag 0x0112.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from embed.errors import ImageRejected, RejectReason

FORMATS: Final = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
MAX_CHUNKS: Final = 100_000
MAX_JPEG_SCANS: Final = 128
MAX_TIFF_VALUES: Final = 250_000
MAX_RUN_LENGTH_BMP_BYTES: Final = 8 * 2**20

_JPEG_BARE: Final = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE_FRAMES: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_METADATA: Final = (frozenset(range(0xE1, 0xF0)) - {0xEE}) | {0xFE}
# TIFF tags that decide pixels; every other entry is replaced by a harmless one.
_TIFF_PIXEL_TAGS: Final = frozenset(
    {
        *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338),
        *(339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
    }
)
_TIFF_VALUE_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TIFF_VALUE_BYTES_BIG: Final = _TIFF_VALUE_BYTES | {16: 8, 17: 8, 18: 8}
_TIFF_INTEGERS: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One image file: stored `width` and `height` (before orientation), and the bytes of its first frame."""

    format: str
    width: int
    height: int
    orientation: int
    essential: tuple[bytes | memoryview, ...]
    largest_tile: int = 0


def read_container(content: bytes) -> Container:
    """The container of `content`, recognised by its first bytes; raises ImageRejected."""
    try:
        return _reader(content)(content)
    except (struct.error, IndexError) as error:
        detail = f"the file ends inside its header, after {len(content)} bytes"
        raise ImageRejected(RejectReason.TRUNCATED, detail) from error


def exif_orientation(exif: bytes | memoryview) -> int:
    """EXIF orientation 1..8 of a TIFF-structured EXIF block; 1 where it is absent or damaged.

    >>> exif_orientation(bytes.fromhex("49492a0008000000 0100 1201 0300 01000000 06000000"))
    6
    """
    block = bytes(exif[:65_536]).removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag == 0x0112:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), block, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _reader(content: bytes) -> Callable[[bytes], Container]:
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png
    if content.startswith((b"GIF87a", b"GIF89a")):
        return _gif
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return _webp
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _tiff
    if content.startswith(b"BM"):
        return _bmp
    start = content[:8]
    raise ImageRejected(RejectReason.UNKNOWN_FORMAT, f"starts with {start!r}; accepted are {', '.join(FORMATS)}")


def _corrupt(detail: str) -> NoReturn:
    raise ImageRejected(RejectReason.CORRUPT, detail)


def _jpeg(content: bytes) -> Container:
    """Keeps the frame, tables and scans, and of the application segments only JFIF and Adobe (they decide colour)."""
    view = memoryview(content)
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    size: tuple[int, int] | None = None
    progressive = False
    orientation = 1
    for marker, start, end in _jpeg_segments(content):
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", content, start + 5)
            size = size or (width, height)
            progressive |= marker in _JPEG_PROGRESSIVE_FRAMES
        elif marker == 0xE1 and content.startswith(b"Exif\0\0", start + 4) and orientation == 1:
            orientation = exif_orientation(view[start + 4 : end])
        if marker == 0xDA and progressive:
            _check_scans(content, start)
        if marker not in _JPEG_METADATA:
            kept.append(view[start:end])
    if size is None:
        _corrupt("the JPEG has no frame header before its first scan")
    return Container(format="JPEG", width=size[0], height=size[1], orientation=orientation, essential=tuple(kept))


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """`(marker, start, end)` of each segment; the last is the first scan, with everything after it."""
    position = 2
    for _ in range(MAX_CHUNKS):
        position = content.find(b"\xff", position)
        if position < 0 or position + 2 > len(content):
            raise ImageRejected(RejectReason.TRUNCATED, "the JPEG ends before its first scan")
        marker = content[position + 1]
        if marker == 0xD9:
            _corrupt("the JPEG holds no picture: its end marker comes before the first scan")
        if marker == 0xDA:
            yield marker, position, len(content)
            return
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _JPEG_BARE:
            position += 2
        else:
            (length,) = struct.unpack_from(">H", content, position + 2)
            end = position + 2 + max(length, 2)
            yield marker, position, end
            position = end
    _corrupt(f"the JPEG has more than {MAX_CHUNKS} segments before its first scan")


def _check_scans(content: bytes, first_scan: int) -> None:
    """Each scan of a progressive JPEG passes over the whole picture, so a small file could keep a core busy."""
    end = content.find(b"\xff\xd9", first_scan)
    num_scans = content.count(b"\xff\xda", first_scan, len(content) if end < 0 else end)
    if num_scans > MAX_JPEG_SCANS:
        _corrupt(f"the progressive JPEG has {num_scans} scans; at most {MAX_JPEG_SCANS} are decoded")


def _png(content: bytes) -> Container:
    """Keeps IHDR, PLTE, tRNS, IDAT and IEND: no text, profiles or animation."""
    view = memoryview(content)
    if content[12:16] != b"IHDR":
        _corrupt("the PNG does not begin with its header chunk")
    width, height = struct.unpack_from(">II", content, 16)
    kept: list[bytes | memoryview] = [view[:8]]
    orientation = 1
    position = 8
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(content):
            break
        (length,) = struct.unpack_from(">I", content, position)
        kind = content[position + 4 : position + 8]
        end = position + 12 + length
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(view[position:end])
        elif kind == b"eXIf":
            orientation = exif_orientation(view[position + 8 : end - 4])
        if kind == b"IEND":
            break
        position = end
    else:
        _corrupt(f"the PNG has more than {MAX_CHUNKS} chunks")
    return Container(format="PNG", width=width, height=height, orientation=orientation, essential=tuple(kept))


def _gif(content: bytes) -> Container:
    """Keeps the palette, the first frame and the control block that gives its transparent colour."""
    view = memoryview(content)
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    position = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    kept: list[bytes | memoryview] = [view[:position]]
    control: memoryview | None = None
    for _ in range(MAX_CHUNKS):
        kind = content[position]
        if kind == 0x2C:
            break
        if kind == 0x21:
            end = _after_sub_blocks(content, position + 2)
            if content[position + 1] == 0xF9:
                control = view[position:end]
            position = end
        elif kind == 0x3B:
            _corrupt("the GIF holds no picture")
        else:
            position += 1
    else:
        _corrupt(f"the GIF has more than {MAX_CHUNKS} blocks before its first picture")
    if control is not None:
        kept.append(control)
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", content, position + 1)
    kept.append(view[position:])
    return Container(
        format="GIF",
        width=max(width, left + frame_width),
        height=max(height, top + frame_height),
        orientation=1,
        essential=tuple(kept),
    )


def _after_sub_blocks(content: bytes, position: int) -> int:
    while position < len(content):
        length = content[position]
        position += length + 1
        if length == 0:
            return position
    raise ImageRejected(RejectReason.TRUNCATED, "the GIF ends before its first picture")


def _webp(content: bytes) -> Container:
    """All bytes are kept: libwebp reads only the first frame, and its metadata is never parsed."""
    (riff_length,) = struct.unpack_from("<I", content, 4)
    if riff_length + 8 > len(content):
        raise ImageRejected(
            RejectReason.TRUNCATED, f"the WebP announces {riff_length + 8} bytes and holds {len(content)}"
        )
    kind = content[12:16]
    orientation = 1
    if kind == b"VP8 ":
        if content[23:26] != b"\x9d\x01\x2a":
            _corrupt("the WebP's first frame has no start code")
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        low, high = struct.unpack_from("<I", content, 24)[0], struct.unpack_from("<I", content, 26)[0]
        width, height = (low & 0xFFFFFF) + 1, (high >> 8) + 1
        if content[20] & 0x08:
            orientation = _webp_orientation(content)
    else:
        _corrupt(f"the WebP's first chunk is {kind!r}, not VP8, VP8L or VP8X")
    return Container(format="WebP", width=width, height=height, orientation=orientation, essential=(content,))


def _webp_orientation(content: bytes) -> int:
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(content):
            return 1
        (length,) = struct.unpack_from("<I", content, position + 4)
        if content[position : position + 4] == b"EXIF":
            return exif_orientation(memoryview(content)[position + 8 : position + 8 + length])
        position += 8 + length + (length & 1)
    return 1


def _bmp(content: bytes) -> Container:
    (header_length,) = struct.unpack_from("<I", content, 14)
    if header_length == 12:
        width, height = struct.unpack_from("<HH", content, 18)
    else:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", content, 18)
        if compression in (1, 2) and len(content) > MAX_RUN_LENGTH_BMP_BYTES:
            raise ImageRejected(  # Pillow decodes these in Python, byte by byte.
                RejectReason.UNSUPPORTED,
                f"a run-length coded BMP of {len(content):,} bytes; at most {MAX_RUN_LENGTH_BMP_BYTES:,} are decoded",
            )
    return Container(format="BMP", width=abs(width), height=abs(height), orientation=1, essential=(content,))


def _tiff(content: bytes) -> Container:
    """Keeps of the first directory only the entries that decide pixels; the rest of the file stays in place."""
    order = "<" if content[:1] == b"I" else ">"
    big = b"+" in content[2:4]
    entry_format, entry_bytes, inline_bytes = (order + "HHQ", 20, 8) if big else (order + "HHI", 12, 4)
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    first = start + (8 if big else 2)
    if first > len(content):
        raise ImageRejected(RejectReason.TRUNCATED, f"the TIFF's directory lies at byte {start} of {len(content)}")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, start)
    end = first + count * entry_bytes
    if end > len(content):
        raise ImageRejected(RejectReason.TRUNCATED, f"the TIFF's directory of {count} entries is cut off")
    cleaned = bytearray(content)
    numbers: dict[int, int] = {}
    total_bytes = 0
    for position in range(first, end, entry_bytes):
        tag, kind, num_values = struct.unpack_from(entry_format, content, position)
        value_bytes = (_TIFF_VALUE_BYTES_BIG if big else _TIFF_VALUE_BYTES).get(kind, 0)
        if tag in (256, 257, 274, 322, 323) and num_values == 1 and value_bytes in _TIFF_INTEGERS:
            value_at = position + entry_bytes - inline_bytes
            (value,) = struct.unpack_from(order + _TIFF_INTEGERS[value_bytes], content, value_at)
            numbers.setdefault(tag, value)
        if tag not in _TIFF_PIXEL_TAGS:
            struct.pack_into(entry_format, cleaned, position, 65_000, 1, 1)
            continue
        if num_values > MAX_TIFF_VALUES:
            _corrupt(f"TIFF tag {tag} has {num_values} values; at most {MAX_TIFF_VALUES} are read")
        total_bytes += num_values * value_bytes
    if total_bytes > len(content):
        _corrupt(f"the TIFF's directory claims {total_bytes} bytes in a file of {len(content)}")
    if 256 not in numbers or 257 not in numbers:
        _corrupt("the TIFF's first directory has no width and height")
    orientation = numbers.get(274, 1)
    return Container(
        format="TIFF",
        width=numbers[256],
        height=numbers[257],
        orientation=orientation if 1 <= orientation <= 8 else 1,
        essential=(bytes(cleaned),),
        largest_tile=numbers.get(322, 0) * numbers.get(323, 0),
    )
