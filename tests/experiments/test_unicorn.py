"""The simulator of conversations against sets in plain Python, and the scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.unicorn import scoring
from experiments.unicorn import world as lib

NUM_ITEMS, NUM_ATTRIBUTES, NUM_USERS = 40, 6, 3


@pytest.fixture(scope="module")
def place() -> lib.World:
    generator = np.random.default_rng(0)
    has = generator.random((NUM_ITEMS, NUM_ATTRIBUTES)) < 0.4
    has[:, 0] |= ~has.any(axis=1)
    users, items, attributes = (
        np.float32(generator.normal(size=(n, 4)))
        for n in (NUM_USERS, NUM_ITEMS, NUM_ATTRIBUTES)
    )
    pairs = np.stack([np.arange(60) % NUM_USERS, np.arange(60) % NUM_ITEMS], axis=1)
    against = jnp.float32(np.where(has, items @ attributes.T, 0))
    arrays = map(jnp.asarray, (has, users, items, attributes))
    return lib.World(*arrays, against, pairs, pairs, pairs)


class Sets:
    """The same conversation with Python's sets."""

    def __init__(self, place: lib.World, target: int, first: int) -> None:
        self.has = [set(np.flatnonzero(row)) for row in np.asarray(place.has)]
        self.target, self.turn = target, 1
        self.accepted, self.rejected = [first], set()
        self.candidate = {v for v, mine in enumerate(self.has) if first in mine}

    def answer(self, attribute: int, items: np.ndarray) -> tuple[float, bool]:
        self.turn += 1
        hit = False
        if attribute >= 0 and attribute in self.has[self.target]:
            self.accepted.append(attribute)
            self.candidate = {v for v in self.candidate if attribute in self.has[v]}
            reward = 0.01
        elif attribute >= 0:
            self.rejected.add(attribute)
            reward = -0.1
        else:
            hit = self.target in items
            reward = 1.0 if hit else -0.1
            if not hit:
                self.candidate -= set(items)
        late = not hit and self.turn >= 15
        return reward - 0.3 * late, hit or late


def test_conversations_are_those_of_sets(place):
    begin = jax.jit(lambda target, key: lib.begin(place, jnp.int32(1), target, key))
    known = jax.jit(lambda now: lib.beliefs(place, now))
    answer = jax.jit(lambda *given: lib.answer(place, *given))
    generator = np.random.default_rng(1)
    hits = 0
    for episode in range(40):
        now = begin(jnp.int32(episode % NUM_ITEMS), jax.random.key(episode))
        model = Sets(place, episode % NUM_ITEMS, int(now.accepted[0]))
        over = False
        while not over:
            askable = set(np.flatnonzero(known(now).askable))
            union = set().union(*(model.has[v] for v in model.candidate))
            assert askable == union - set(model.accepted) - model.rejected
            items = np.asarray(lib.best_list(now, known(now).scores))
            assert set(items[items >= 0]) <= model.candidate
            if episode % 4 == 0:
                items = np.full_like(items, -1)  # an empty list: time runs out
            ask = bool(askable) and generator.random() < 0.8
            attribute = int(generator.choice(sorted(askable))) if ask else -1
            new = answer(now, jnp.int32(attribute), items)
            reward, over = model.answer(attribute, items)
            np.testing.assert_allclose(new.reward, reward, rtol=1e-6)
            assert bool(new.over) == over
            now = new.conversation
            if bool(new.hit):
                hits += 1
                assert items[int(new.rank) - 1] == model.target
                continue
            assert set(np.flatnonzero(now.candidate)) == model.candidate
            assert model.target in model.candidate
            accepted = np.asarray(now.accepted)
            assert accepted[accepted >= 0].tolist() == model.accepted
            assert set(np.flatnonzero(now.rejected)) == model.rejected
            assert int(now.turn) == model.turn
    assert hits == 30


def test_scores_by_hand():
    outcomes = scoring.Outcomes(
        np.array([0, 2, -1, 13]), np.array([1, 3, 0, 1]), np.array([0, 2, 14, 13])
    )
    found = scoring.scores(outcomes)
    assert found["success"] == 0.75
    assert found["turns"] == (1 + 3 + 15 + 14) / 4
    third = 1 / np.log2(5) + (1 / 2 - 1 / np.log2(5)) / 2
    gains = scoring.gain(outcomes.action, outcomes.rank)
    np.testing.assert_allclose(gains, [1.0, third, 0.0, 1 / np.log2(15)], rtol=1e-6)
    assert found["by_turn"][:5] == [0.25, 0.25, 0.5, 0.5, 0.5]
    # The fourteenth action is the last: SR@14 = SR@15 = SR.
    assert found["by_turn"][12:] == [0.5, 0.75, 0.75]
    mean = np.sum(1 - np.array(found["by_turn"][:-1])) + 1
    assert found["turns"] == mean  # AT is the area above the curve
    assert sorted(found["by_turn"]) == found["by_turn"]


def test_a_list_of_all_candidates_hits_at_once_and_nobody_asks_for_ever(place):
    pairs = np.array([[0, v] for v in range(NUM_ITEMS)])
    always = scoring.player(place, scoring.threshold(place, float("inf")), chunk=20)
    outcomes = always((), pairs, jax.random.key(0))
    assert outcomes.questions.max() == 0
    # 40 items, ten at a time, minus those that never were candidates.
    assert outcomes.action.min() == 0 and 0 <= outcomes.action.max() <= 3
    asking = scoring.player(place, scoring.threshold(place, 0), chunk=20)
    assert asking((), pairs, jax.random.key(0)).questions.max() <= NUM_ATTRIBUTES - 1
