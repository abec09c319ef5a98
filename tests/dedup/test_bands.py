"""The pigeonhole: whatever the bands, no pair within the threshold escapes every key."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_engine.dedup.bands import HASH_BITS, band_masks, choose_bands, key_masks

HASHES = st.integers(0, 2**64 - 1)


@given(st.data(), HASHES, st.integers(1, 8))
def test_hashes_within_the_threshold_share_a_key(data, one, threshold):
    bands = data.draw(st.integers(threshold + 1, threshold + 3))
    flipped = data.draw(st.sets(st.integers(0, HASH_BITS - 1), max_size=threshold))
    other = one ^ sum(1 << bit for bit in flipped)
    assert any((one ^ other) & mask == 0 for mask in key_masks(threshold, bands))


@pytest.mark.parametrize("bands", [1, 5, 9, 64])
def test_bands_share_out_all_bits(bands):
    masks = band_masks(bands)
    assert sum(masks) == 2**64 - 1
    assert all(a & b == 0 for i, a in enumerate(masks) for b in masks[:i])
    assert max(mask.bit_count() for mask in masks) - min(mask.bit_count() for mask in masks) <= 1


def test_more_hashes_take_more_bands():
    sample = np.random.default_rng(0).integers(0, 2**64, 50_000, dtype=np.uint64)
    bands = [choose_bands(sample, total, 4) for total in (50_000, 10**6, 10**8)]
    assert bands == sorted(bands)
    assert 5 <= bands[0] < bands[-1] <= 10


def test_a_threshold_of_nothing_needs_no_key():
    assert key_masks(0, choose_bands(np.arange(10, dtype=np.uint64), 10, 0)) == []
