"""Pairs of the policy's own: who speaks, who wins, what counts, what is kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.data import online_preferences
from rlx.data.prompts import Prompts
from rlx.generation.language_model import LanguageModel
from rlx.generation.sampling import Generated
from rlx.ops.preference import Teacher
from rlx.ops.sequences import Calibrated, Preferences, Sequences
from rlx.types import Network, Policy

COUNT, BATCH, REFERENCE = 5, 64, 100
ASKED = Prompts(jnp.arange(COUNT)[:, None] + 10, jnp.ones((COUNT, 1), bool))


def policy(words: int = 4) -> Policy:
    """Says one word of `words` and the prompt's own."""

    def act(observation: dict, carry: tuple, key: Any) -> tuple:
        prompt = jnp.repeat(observation["tokens"], observation["samples"], axis=0)
        word = jax.random.randint(key, prompt.shape, 0, words)
        tokens = jnp.concatenate([word, prompt], axis=1)
        there = jnp.ones(tokens.shape, bool)
        answer = {"tokens": tokens, "mask": there}
        return answer, carry, {"log_prob": jnp.zeros(tokens.shape)}

    return Policy(act, lambda: ())


def says_its_parameter(
    params: jax.Array, prompt: jax.Array, mask: jax.Array, key: Any
) -> Generated:
    del mask, key
    tokens = jnp.concatenate([jnp.full_like(prompt, params), prompt], axis=1)
    return Generated(tokens, jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape))


NETWORK = Network(lambda key: (), lambda params, tokens: tokens)
SPEAKER = LanguageModel(NETWORK, says_its_parameter, jnp.int32(REFERENCE))


def first_word(rows: Sequences) -> jax.Array:
    return rows.tokens[:, 1].astype(jnp.float32)


def batch_of(words: int = 4, **options: Any) -> tuple[Any, dict]:
    options = {"score": first_word, "teacher": Teacher(), **options}
    source = online_preferences.pairs(ASKED, batch_size=BATCH, **options)
    following = jax.jit(lambda key: source.next((), policy(words), key)[1:])
    return following(jax.random.key(0))


def test_the_better_one_is_chosen_and_the_same_twice_counts_nothing() -> None:
    batch, metrics = batch_of()
    assert isinstance(batch, Preferences)
    chosen, rejected = batch.chosen.tokens, batch.rejected.tokens
    np.testing.assert_array_equal(chosen[:, [0, 2]], rejected[:, [0, 2]])
    np.testing.assert_array_equal(chosen[:, 0], chosen[:, 2])
    same = chosen[:, 1] == rejected[:, 1]
    assert (chosen[:, 1] >= rejected[:, 1]).all() and 0 < same.sum() < BATCH
    np.testing.assert_array_equal(batch.weight, ~same * 1.0)
    np.testing.assert_allclose(metrics["identical"], same.mean())
    np.testing.assert_array_equal(batch.chosen.response[0], [False, True, True])


def test_different_responses_of_equal_score_are_undecided() -> None:
    batch, metrics = batch_of(
        score=lambda rows: jnp.zeros(len(rows.tokens)),
        teacher=Teacher(equal_threshold=0.1),
    )
    assert (batch.weight == 0).all() and metrics["identical"] < 0.5


def test_labels_are_noisy_as_bradley_and_terry_say() -> None:
    batch, _ = batch_of(words=2, teacher=online_preferences.BRADLEY_TERRY)
    decided = batch.weight > 0
    share = (batch.chosen.tokens[:, 1] == 1)[decided].mean()
    assert abs(share - 0.731) < 3 * np.sqrt(0.731 * 0.269 / decided.sum())
    assert share < 1


def test_the_reference_is_the_opponent_and_calibrates() -> None:
    batch, _ = batch_of(reference=SPEAKER, opponent="reference", calibrated=True)
    assert isinstance(batch, Calibrated)
    assert (batch.pairs.chosen.tokens[:, 1] == REFERENCE).all()
    assert (batch.pairs.rejected.tokens[:, 1] < 4).all()
    np.testing.assert_array_equal(batch.calibration.tokens, batch.pairs.chosen.tokens)
    batch, _ = batch_of(reference=SPEAKER, calibrated=True)
    assert (batch.pairs.chosen.tokens[:, 1] < 4).all()
    assert (batch.calibration.tokens[:, 1] == REFERENCE).all()
    np.testing.assert_array_equal(
        batch.calibration.tokens[:, 0], batch.pairs.chosen.tokens[:, 0]
    )


def test_the_memory_keeps_the_last_pairs() -> None:
    """The reference says t in round t: rows tell when they were made."""
    source = online_preferences.pairs(
        ASKED,
        batch_size=BATCH,
        score=first_word,
        reference=SPEAKER,
        opponent="reference",
        capacity=2 * BATCH,
    )
    state = source.init(jax.random.key(0), policy())

    @jax.jit
    def following(state: Any, params: jax.Array, key: jax.Array) -> tuple:
        here = source.over((ASKED, params))
        return here.next(state, policy(), key)[:2]

    for turn, expected in ((100, {100}), (200, {100, 200}), (300, {200, 300})):
        key = jax.random.key(turn)
        state, batch = following(state, jnp.int32(turn), key)
        words = np.stack([batch.chosen.tokens[:, 1], batch.rejected.tokens[:, 1]])
        assert set(words.max(0).tolist()) == expected
        assert batch.weight.shape == (BATCH,)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"opponent": "nobody"}, "opponent must be one of"),
        ({"opponent": "reference"}, "need a `reference`"),
        ({"calibrated": True}, "need a `reference`"),
        (
            {"calibrated": True, "reference": SPEAKER._replace(sampler=None)},
            "need a `reference`",
        ),
        ({"capacity": BATCH + 1}, "multiple of batch_size"),
    ],
)
def test_impossible_sources_are_refused(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        online_preferences.pairs(ASKED, batch_size=BATCH, score=first_word, **options)
