import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlx.ops import shuffling


@pytest.mark.parametrize("size", [1, 2, 2000, 4096, 4097, 10_000])
def test_every_row_is_a_permutation(size):
    rows = shuffling.permutations(jax.random.key(0), size, 3)
    assert rows.dtype == jnp.int32
    for row in rows:
        np.testing.assert_array_equal(np.sort(row), np.arange(size))
    if size > 2:
        assert not np.array_equal(rows[0], rows[1])


def test_all_orders_of_four_are_equally_frequent():
    rows = np.asarray(shuffling.permutations(jax.random.key(1), 4, 24_000))
    codes = rows @ np.array([64, 16, 4, 1])
    orders = [np.dot(p, [64, 16, 4, 1]) for p in itertools.permutations(range(4))]
    counts = [np.sum(codes == order) for order in orders]
    assert sum(counts) == 24_000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("size", [4096, 5000])
def test_every_index_lands_everywhere(size):
    rows = np.asarray(shuffling.permutations(jax.random.key(2), size, 200))
    places = np.argsort(rows, axis=1)  # where each index went
    blocks = places * 8 // size
    for index in (0, size // 2, size - 1):
        counts = np.bincount(blocks[:, index], minlength=8)
        assert stats.chisquare(counts).pvalue > 1e-3
    correlation = np.corrcoef(rows.ravel(), np.tile(np.arange(size), 200))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(rows.size)


def test_no_indices_are_refused():
    with pytest.raises(ValueError, match="size must be at least 1"):
        shuffling.permutations(jax.random.key(0), 0, 1)
