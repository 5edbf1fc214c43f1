"""Rules of the frame around every binary format."""

from __future__ import annotations

import numpy as np
import pytest

from lsh.errors import FormatError
from lsh.framing import FrameFormat

CRATE = FrameFormat(name="crate", magic=b"NDXX", version=3, counts=("num_apples",))
FRAME = CRATE.pack([7], [np.array([1, 2, 3], dtype=np.uint8)])


def test_a_frame_gives_back_its_counts_and_sections() -> None:
    """Unpacking returns the counts and the bytes that were packed, from any kind of buffer."""
    for frame in (FRAME, bytearray(FRAME), memoryview(FRAME), np.frombuffer(FRAME, dtype=np.uint8)):
        counts, body = CRATE.unpack(frame)

        assert counts == (7,)
        assert body.tolist() == [1, 2, 3]


@pytest.mark.parametrize("size", range(len(FRAME)))
def test_a_truncated_frame_raises(size: int) -> None:
    """A frame cut at any byte raises FormatError."""
    with pytest.raises(FormatError):
        CRATE.unpack(FRAME[:size])


@pytest.mark.parametrize("bit", range(8 * len(FRAME)))
def test_a_flipped_bit_raises(bit: int) -> None:
    """A frame with any single bit flipped raises FormatError."""
    damaged = bytearray(FRAME)
    damaged[bit // 8] ^= 1 << (bit % 8)

    with pytest.raises(FormatError):
        CRATE.unpack(damaged)


def test_another_format_is_named() -> None:
    """The bytes of another format raise an error that names both magics."""
    other = FrameFormat(name="box", magic=b"NDYY", version=3, counts=("num_apples",))

    with pytest.raises(FormatError, match="start with b'NDXX', a box starts with b'NDYY'"):
        other.unpack(FRAME)


def test_another_version_is_named() -> None:
    """A frame of another version raises an error that names both versions."""
    newer = FrameFormat(name="crate", magic=b"NDXX", version=4, counts=("num_apples",))

    with pytest.raises(FormatError, match="version 3 found, this program reads version 4"):
        newer.unpack(FRAME)


def test_sections_must_fill_the_body() -> None:
    """Sizes of sections that do not add up to the body raise FormatError, however large they are."""
    _, body = CRATE.unpack(FRAME)

    assert [section.tolist() for section in CRATE.split(body, [1, 2])] == [[1], [2, 3]]
    for sizes in ([1, 1], [2**63, 3], [2**64 - 1, 4]):
        with pytest.raises(FormatError, match="found 3"):
            CRATE.split(body, sizes)
