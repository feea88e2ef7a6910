"""The convolution over words, against a loop over windows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.networks import text_cnn

CONFIG = text_cnn.Config(9, 2, width=5, filters=4, windows=(1, 3))
NETWORK = text_cnn.classifier(CONFIG)
PARAMS = jax.tree.map(
    lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape),
    NETWORK.init(jax.random.key(0)),
)
TOKENS = jnp.array([[3, 1, 4, 1, 5], [2, 7, 1, 0, 0], [0, 0, 8, 2, 8]])
MASK = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)


def by_hand(row: int) -> np.ndarray:
    params = jax.tree.map(np.asarray, PARAMS)
    there = np.asarray(MASK[row])
    x = params["embedding"][np.asarray(TOKENS[row])] * there[:, None]
    features = []
    for window, weights in zip(CONFIG.windows, params["filters"], strict=True):
        best = np.zeros(CONFIG.filters)
        for first in np.flatnonzero(there):
            seen = np.zeros((window, CONFIG.width))
            part = x[first : first + window]
            seen[: len(part)] = part
            best = np.maximum(
                best, seen.reshape(-1) @ weights["kernel"] + weights["bias"]
            )
        features.append(best)
    return np.concatenate(features) @ params["head"]["kernel"] + params["head"]["bias"]


def test_it_is_the_loop_over_windows() -> None:
    found = NETWORK.apply(PARAMS, TOKENS, mask=MASK)
    for row in range(3):
        np.testing.assert_allclose(found[row], by_hand(row), rtol=1e-4, atol=1e-5)


def test_padding_may_hold_and_stand_anything_anywhere() -> None:
    changed = jnp.where(MASK, TOKENS, 6)
    wider = jnp.pad(changed, ((0, 0), (2, 3)), constant_values=5)
    mask = jnp.pad(MASK, ((0, 0), (2, 3)))
    found = NETWORK.apply(PARAMS, wider, mask=mask)
    np.testing.assert_allclose(
        found, NETWORK.apply(PARAMS, TOKENS, mask=MASK), rtol=1e-5
    )


def test_a_text_shorter_than_a_window_is_read() -> None:
    found = NETWORK.apply(PARAMS, TOKENS[:, :2])
    assert found.shape == (3, 2) and bool(jnp.all(jnp.isfinite(found)))


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="sizes must be positive"):
        text_cnn.Config(9, 2, windows=(0,))
