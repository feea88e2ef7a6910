"""The source over a pool: when it grows, what it asks, what it refuses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.data.prompts import Prompts
from rlx.data.reward_pool import Settings, best_rows, pool
from rlx.ops.control_tokens import Controls, Rated, assign_bins
from rlx.ops.sequences import Sequences, joined
from rlx.types import DataSource, Policy

STYLES, LENGTH, STEPS = 3, 4, 2
CONTROLS = Controls(num_words=50, num_metrics=2, num_styles=STYLES, num_bins=4)
ASKED = Prompts(jnp.arange(20).reshape(5, 4), jnp.ones((5, 4), bool))
SPOKEN = jnp.array([0, 1, 2, 0, 1])
GROWING = Settings(batch_size=8, capacity=60, every=3, rollouts=6)


def rated(rows: int = 12) -> Rated:
    prompt = jnp.zeros((rows, LENGTH), jnp.int32)
    said = jnp.full((rows, STEPS), 40)
    there = jnp.ones((rows, STEPS), bool)
    sequences = joined(prompt, jnp.ones(prompt.shape, bool), said, there)
    metrics = jnp.stack([jnp.arange(rows) / rows, jnp.ones(rows)], axis=-1)
    return Rated(sequences, jnp.arange(rows) % STYLES, metrics)


def echo(observation: dict, carry: tuple, key: Any) -> tuple:
    """Says the first control word of its prompt, and the prompt's last word."""
    del key
    tokens = observation["tokens"]
    said = jnp.stack([tokens[:, 0], tokens[:, -1]], axis=-1)
    there = jnp.ones(said.shape, bool)
    return {"tokens": said, "mask": there}, carry, {}


POLICY = Policy(echo, lambda: ())


def score(rows: Sequences, style: jax.Array) -> jax.Array:
    """Above all of the start's, growing with the prompt's last word."""
    value = 2.0 + rows.tokens[:, -1] / 10.0
    return jnp.stack([value, value + style], axis=-1)


def make(settings: Settings = GROWING, **options: Any) -> DataSource:
    options = {"score": score, "source_style": SPOKEN, **options}
    return pool(rated(), ASKED, controls=CONTROLS, settings=settings, **options)


def run(source: DataSource, batches: int) -> list[tuple]:
    """States, batches and metrics, one after the other."""
    following = jax.jit(lambda state, key: source.next(state, POLICY, key))
    state = jax.jit(lambda key: source.init(key, POLICY))(jax.random.key(0))
    found = []
    for i in range(batches):
        state, batch, metrics = following(state, jax.random.key(i))
        found.append((state, batch, metrics))
    return found


def test_it_grows_by_rounds_but_not_at_first() -> None:
    found = run(make(), 8)
    sizes = [int(metrics["rows"]) for _, _, metrics in found]
    assert sizes == [12, 12, 12, 18, 18, 18, 24, 24]
    late = Settings(batch_size=8, capacity=60, every=2, rollouts=6, offline=3)
    found = [int(x["rows"]) for _, _, x in run(make(late), 6)]
    assert found == [12, 12, 12, 12, 18, 18]
    offline = Settings(batch_size=8, capacity=60)
    assert [int(x["rows"]) for _, _, x in run(make(offline), 5)] == [12] * 5


def test_it_asks_for_the_best_of_another_style() -> None:
    state = run(make(), 4)[-1][0]
    rows = np.asarray(state.rows.sequences.tokens)
    new = np.asarray(state.rows.metrics)[:, 0] >= 2
    assert new.sum() == 6
    for tokens, style in zip(rows[new], np.asarray(state.rows.style)[new], strict=True):
        metric, told, level = CONTROLS.read(jnp.asarray(tokens[LENGTH]))
        assert (int(metric), int(told), int(level)) == (0, style, 3)
        assert SPOKEN[tokens[0] // 4] != style
        assert tokens[-1] == tokens[LENGTH - 1]


def test_all_is_binned_anew() -> None:
    """After each round the bins are those of everything in the pool at once."""
    for state, batch, _ in run(make(), 7):
        there = np.asarray(state.there)
        rows = jax.tree.map(lambda x, there=there: x[there], state.rows)
        expected = assign_bins(
            rows.metrics,
            rows.style,
            jnp.ones(len(rows.style), bool),
            num_groups=STYLES,
            num_bins=4,
        )
        np.testing.assert_array_equal(np.asarray(state.bins)[there], expected)
        known = np.asarray(CONTROLS.tokens(rows.style, expected)).tolist()
        assert all(row in known for row in np.asarray(batch.controls).tolist())


def test_batches_carry_the_words_of_their_rewards() -> None:
    state, batch, _ = run(make(), 1)[0]
    metric, style, level = CONTROLS.read(batch.controls)
    np.testing.assert_array_equal(metric, [[0, 1]] * 8)
    # Rows 0 … 11 of three styles: four in each, so that rank and bin are row // 3.
    row = np.rint(np.asarray(batch.metrics[:, 0]) * 12).astype(int)
    np.testing.assert_array_equal(style, np.stack([row % 3] * 2, axis=-1))
    np.testing.assert_array_equal(level[:, 0], row // 3)
    np.testing.assert_array_equal(level[:, 1], 2)  # no variance: the middle
    assert batch.sequences.tokens.shape == (8, LENGTH + STEPS)


def test_what_was_cut_off_gets_an_end() -> None:
    settings = Settings(batch_size=8, capacity=60, every=1, rollouts=6, stop_token=9)
    state = run(make(settings), 2)[-1][0]
    new = np.asarray(state.rows.metrics)[:, 0] >= 2
    assert set(np.asarray(state.rows.sequences.tokens)[new, -1]) == {9}
    np.testing.assert_allclose(np.asarray(state.rows.metrics)[new, 0], 2.9)


def test_a_reward_that_is_no_number_is_kept_out_and_stops_a_run() -> None:
    def bad(rows: Sequences, style: jax.Array) -> jax.Array:
        value = score(rows, style)
        wrong = rows.tokens[:, 0] == 8  # prompt 2
        return value.at[:, 1].set(jnp.where(wrong, jnp.nan, value[:, 1]))

    settings = Settings(batch_size=8, capacity=300, every=1, rollouts=64)
    (_, first, metrics), (state, batch, late) = run(make(settings, score=bad), 2)
    assert int(metrics["bad_row"]) == -1
    assert np.all(np.isfinite(first.metrics))
    assert int(late["bad_row"]) == 2
    assert np.all(np.isnan(batch.metrics))
    assert np.all(np.isfinite(state.rows.metrics))
    tokens = np.asarray(state.rows.sequences.tokens)[np.asarray(state.there)]
    assert 8 not in tokens[:, 0] and 12 < len(tokens) < 12 + 64


def test_the_best_rows_of_each_style() -> None:
    value = jnp.array([5.0, 1, 2, 3, 4, 9, 8, 7, 6, 0, 0.5, 0.2])
    found = best_rows(rated(), value, 2)
    # Styles are row % 3; of style 0 rows 0, 3, 6, 9 with 5, 3, 8, 0.
    np.testing.assert_array_equal(found.style, [0, 0, 1, 1, 2, 2])
    row = np.rint(np.asarray(found.metrics[:, 0]) * 12).astype(int)
    np.testing.assert_array_equal(row, [6, 0, 7, 4, 5, 8])
    assert len(best_rows(rated(), value, 100).style) == 12
    with pytest.raises(ValueError, match="value of row 1 is not finite"):
        best_rows(rated(), value.at[1].set(jnp.inf), 2)


def first(change: dict) -> Rated:
    return rated().replace(**change)


@pytest.mark.parametrize(
    ("start", "options", "words"),
    [
        (first({"metrics": jnp.full((12, 2), jnp.nan)}), {}, "reward of row 0"),
        (first({"metrics": jnp.zeros((12, 3))}), {}, "both must agree"),
        (first({"style": jnp.arange(12) % 2}), {}, "needs a first row"),
        (first({"style": jnp.arange(12) % 4}), {}, "3 rows of no such style"),
        (rated(), {"source_style": SPOKEN[:4]}, "5 prompts, but 4 styles"),
        (rated(), {"settings": Settings(batch_size=8, capacity=61)}, "multiple of"),
    ],
)
def test_impossible_pools_are_refused(start: Rated, options: dict, words: str) -> None:
    given = {"settings": GROWING, "source_style": SPOKEN, "score": score, **options}
    with pytest.raises(ValueError, match=words):
        source = pool(start, ASKED, controls=CONTROLS, **given)
        source.init(jax.random.key(0), POLICY)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"every": 3}, "set both"),
        ({"rollouts": 3}, "set both"),
        ({"keep": "all"}, "keep must be one of"),
        ({"batch_size": 0}, "must be positive"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**{"batch_size": 8, "capacity": 60, **fields})
