"""Rules of the descriptors under comparison."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from embed.evaluation.descriptors import HashDescriptor, load_descriptors


@pytest.mark.parametrize("num_differing", [0, 1, 31, 128, 256])
def test_the_similarity_of_hashes_is_exactly_their_hamming_distance(num_differing: int) -> None:
    """The dot product of two 256-bit hashes is `1 - hamming / 128`, without rounding."""
    bits = np.random.default_rng(0).integers(0, 2, 256)
    other = bits.copy()
    other[:num_differing] ^= 1
    blank = np.zeros((1, 1, 3), np.uint8)
    left = HashDescriptor("hash", lambda _: bits).prepare(blank)
    right = HashDescriptor("hash", lambda _: other).prepare(blank)
    assert float(left @ right) == 1 - num_differing / 128


@pytest.mark.parametrize("name", ["pdq", "phash"])
def test_a_perceptual_hash_of_a_resized_picture_stays_close(name: str) -> None:
    """The built-in hashes are real: a smoothly resized picture keeps most bits, a different one about half."""
    (descriptor,) = load_descriptors([name], embedder="vgg_copy")
    rng = np.random.default_rng(3)
    photo, another = (
        Image.fromarray(coarse).resize((320, 320), Image.Resampling.BICUBIC)
        for coarse in rng.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    )
    picture, other, resized = (
        descriptor.prepare(np.asarray(image)) for image in (photo, another, photo.resize((200, 200)))
    )
    assert float(picture @ resized) > 0.6
    assert abs(float(picture @ other)) < 0.5
