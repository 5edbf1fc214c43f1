"""The frame around every binary format of `lsh`: magic, version, checksum and counts, then the sections.

Little-endian on every machine. `FORMAT.md` describes the bytes; `blocks` and `posting_lists` fill the frames.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsh.errors import FormatError

FrameBytes = bytes | bytearray | memoryview | NDArray[np.uint8]

_HEADER = struct.Struct("<4sIII")
_BYTES_PER_COUNT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFormat:
    """One binary format: what it is called in errors, its magic and version, and the names of its counts."""

    name: str
    magic: bytes
    version: int
    counts: tuple[str, ...]

    def pack(self, counts: Sequence[int], sections: Sequence[NDArray[np.generic]]) -> bytes:
        """Header, counts and the bytes of `sections`, which must already be little-endian."""
        return b"".join(self.buffers(counts, sections))

    def buffers(self, counts: Sequence[int], sections: Sequence[NDArray[np.generic]]) -> list[bytes | memoryview]:
        """What `pack` joins, for who writes a large frame to a file: contiguous sections are not copied."""
        views = (memoryview(np.ascontiguousarray(section).reshape(-1).view(np.uint8).data) for section in sections)
        body: list[bytes | memoryview] = [struct.pack(f"<{len(self.counts)}Q", *counts), *views]
        checksum = 0
        for part in body:
            checksum = zlib.crc32(part, checksum)
        return [_HEADER.pack(self.magic, self.version, len(self.counts), checksum), *body]

    def unpack(self, frame: FrameBytes, *, is_verified: bool = False) -> tuple[tuple[int, ...], NDArray[np.uint8]]:
        """The counts and the bytes of all sections, without a copy; raises FormatError unless all of it checks out.

        The checksum of a frame that `is_verified` is not computed again.
        """
        data = np.frombuffer(frame, dtype=np.uint8)
        header_size = _HEADER.size + _BYTES_PER_COUNT * len(self.counts)
        if data.size < header_size:
            raise FormatError(f"a {self.name} has at least {header_size} bytes, got {data.size}; it is truncated")
        magic, version, num_counts, checksum = _HEADER.unpack_from(data.data)
        if magic != self.magic:
            raise FormatError(f"these bytes start with {magic!r}, a {self.name} starts with {self.magic!r}")
        if version != self.version:
            raise FormatError(
                f"{self.name} of version {version} found, this program reads version {self.version}; "
                f"write it again with this program, or read it with the one that wrote it"
            )
        if num_counts != len(self.counts):
            raise FormatError(f"a {self.name} has {len(self.counts)} counts, found {num_counts}; it is damaged")
        actual_checksum = checksum if is_verified else zlib.crc32(data[_HEADER.size :].data)
        if actual_checksum != checksum:
            raise FormatError(
                f"checksum of a {self.name} is {actual_checksum:08x}, expected {checksum:08x}; "
                f"it is truncated or damaged, write it again"
            )
        counts = struct.unpack_from(f"<{len(self.counts)}Q", data.data, _HEADER.size)
        return counts, data[header_size:]

    def split(self, body: NDArray[np.uint8], sizes_bytes: Sequence[int]) -> list[NDArray[np.uint8]]:
        """The sections of `body`, which must be exactly as long as they are together; raises FormatError."""
        if sum(sizes_bytes) != body.size:
            raise FormatError(
                f"sections of a {self.name} should take {sum(sizes_bytes)} bytes, found {body.size}; it is damaged"
            )
        ends = np.cumsum(np.array(sizes_bytes, dtype=np.int64))
        return [body[end - size : end] for end, size in zip(ends.tolist(), sizes_bytes, strict=True)]
