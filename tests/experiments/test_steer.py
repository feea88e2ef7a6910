"""What the study of STEER says of texts, on texts whose answer is plain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.language import style as language
from experiments.steer import measure, summary
from experiments.steer import world as worlds
from experiments.steer.world import World
from rlx.networks import transformer

SIZE = 50


@pytest.fixture(scope="module")
def world() -> World:
    """Without a paraphraser; its classifier counts the tokens of each style."""
    spoken = language.random(jax.random.key(0), num_styles=worlds.STYLES)
    styles = language.style_of(spoken)[:, None] == jnp.arange(worlds.STYLES)[None]
    weights = jnp.concatenate([styles.astype(jnp.float32), jnp.zeros((1, 4))])
    shape = transformer.Config(vocabulary_size=spoken.vocabulary_size)
    return World(spoken, shape, (), jnp.zeros((4, 1, 1)), weights)


def test_copies_are_seen_and_the_language_itself_is_better(world: World) -> None:
    asked = worlds.ask(jax.random.key(1), world, SIZE)
    copy = measure.report(world, measure.copied(asked), asked)
    assert copy["copies"] == 1 and copy["similarity"] == 1
    assert copy["length_ratio"] == 1 and copy["accuracy"] < 0.1
    rows = measure.perfect(jax.random.key(2), world, asked)
    best = measure.report(world, rows, asked)
    assert best["copies"] == 0 and best["similarity"] == 1 and best["accuracy"] == 1
    assert best["value"] > copy["value"] + 0.5
    values = np.array(best["values"].split(), float) / 1000
    assert len(values) == SIZE
    np.testing.assert_allclose(values.mean(), best["value"], atol=1e-3)


def test_another_style_is_asked_for(world: World) -> None:
    asked = worlds.ask(jax.random.key(1), world, 400)
    assert not np.any(asked.style == asked.source_style)
    assert set(np.unique(asked.style)) == set(range(worlds.STYLES))


def test_rank_correlations() -> None:
    assert summary.spearman([0.1, 0.2, 0.4, 0.8]) == pytest.approx(1.0)
    assert summary.spearman([0.8, 0.4, 0.2, 0.1]) == pytest.approx(-1.0)
    assert summary.spearman([0.5, 0.5, 0.5]) == 0.0
    # Ranks 0.5 0.5 2 against 0 1 2: covariance 1.5, variances 2 and 1.5.
    assert summary.spearman([1.0, 1.0, 2.0]) == pytest.approx(1.5 / np.sqrt(3.0))


def test_paired_differences_cover_what_is_there() -> None:
    generator = np.random.default_rng(0)
    noise = generator.random(500)
    runs = [
        {
            "arms": {
                name: {"values": " ".join(f"{round(1000 * x)}" for x in noise + more)}
                for name, more in (("one", 0.1), ("other", 0.0))
            }
        }
    ] * 3
    found = summary.paired(runs, "one", "other")
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["difference"] == pytest.approx(0.1, abs=1e-3)
    assert found["high"] - found["low"] < 0.01
