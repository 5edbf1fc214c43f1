"""Rules of the kernels on 64-bit words."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsh.bits import mix64

word = st.integers(0, 2**64 - 1)


@given(word)
def test_mixing_equals_its_formula_in_python_integers(value: int) -> None:
    """`mix64` equals SplitMix64's finaliser computed modulo 2^64."""
    mask = 2**64 - 1
    mixed = (value + 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask

    assert int(mix64(np.uint64(value))) == mixed ^ (mixed >> 31)


def test_mixing_starts_with_the_published_output() -> None:
    """`mix64` of 0 is the first output of SplitMix64 seeded with 0, so partitions stay the same across versions."""
    assert int(mix64(np.uint64(0))) == 0xE220A8397B1DCDAF
