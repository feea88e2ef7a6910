"""More words for a decoder: what was there stays, and what is new does not disturb."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.networks import transformer
from rlx.networks.transformer_controls import extended, scale_controls, with_controls

CONFIG = transformer.Config(
    vocabulary_size=40, width=16, num_layers=1, num_heads=2, max_length=8
)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_without_control_words_read_the_same(tied: bool) -> None:
    config = dataclasses.replace(CONFIG, tied=tied)
    params = transformer.init(config, jax.random.key(0))
    longer = extended(config, 6)
    more = with_controls(config, params, 6, jax.random.key(1))
    rows = jax.random.randint(jax.random.key(2), (3, 8), 0, 40)
    before = transformer.decoder(config).apply(params, rows)
    after = transformer.decoder(longer).apply(more, rows)
    assert after.shape == (3, 8, 46)
    np.testing.assert_allclose(after[..., :40], before, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda x, y: (
            None if x.shape != y.shape else np.testing.assert_array_equal(x, y)
        ),
        params,
        more,
    )


def test_new_embeddings_have_mean_and_deviation_of_the_old() -> None:
    """Of 4000 new rows, dimension by dimension; of columns of the head as well."""
    config = dataclasses.replace(CONFIG, tied=False)
    params = transformer.init(config, jax.random.key(0))
    scale = jnp.linspace(0.5, 3.0, 16)[None]
    params["embedding"] = params["embedding"] * scale + 2 * scale
    more = with_controls(config, params, 4000, jax.random.key(1))
    for old, new in (
        (params["embedding"], more["embedding"][40:]),
        (params["head"].T, more["head"].T[40:]),
    ):
        deviation = np.std(old, axis=0)
        apart = (np.mean(new, axis=0) - np.mean(old, axis=0)) / deviation
        np.testing.assert_allclose(apart, 0.0, atol=0.07)
        np.testing.assert_allclose(np.std(new, axis=0) / deviation, 1.0, atol=0.05)


def test_updates_of_control_words_have_their_own_size() -> None:
    params = transformer.init(extended(CONFIG, 2), jax.random.key(0))
    ones = jax.tree.map(jnp.ones_like, params)
    scale = scale_controls(40, 5.0)
    found, _ = scale.update(ones, scale.init(params), params)
    np.testing.assert_array_equal(found["embedding"][:40], 1.0)
    np.testing.assert_array_equal(found["embedding"][40:], 5.0)
    for x in jax.tree.leaves({**found, "embedding": 1.0}):
        np.testing.assert_array_equal(x, 1.0)


def test_what_does_not_fit_is_refused() -> None:
    params = transformer.init(CONFIG, jax.random.key(0))
    with pytest.raises(ValueError, match="num_controls must be positive"):
        extended(CONFIG, 0)
    with pytest.raises(ValueError, match="the embedding has shape"):
        with_controls(extended(CONFIG, 1), params, 2, jax.random.key(0))
