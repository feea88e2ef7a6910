"""Rules by brute force, whole conversations, and their scores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import conversation
from experiments.unicorn import (
    benchmark,
    compare,
    ear,
    learned,
    results,
    rules,
    scoring,
)
from rlx.methods import unicorn
from rlx.ops import conversation as ops

WORLD = conversation.World(
    num_users=4, num_items=60, num_attributes=12, most=6, num_interactions=40
)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def catalogue():
    return conversation.synthetic(WORLD)


@pytest.fixture(scope="module")
def seen(catalogue):
    """Sixteen conversations after three random turns."""
    env = benchmark.plain(catalogue)

    def one(key):
        keys = jax.random.split(key, 4)
        state, seen = env.reset(keys[0])
        for turn in range(3):
            logits = jnp.where(seen.action_mask, 0.0, -jnp.inf)
            state, step = env.step(
                state, jax.random.categorical(keys[1 + turn], logits), None
            )
            seen = step.observation
        return seen

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, 16))


def chosen(catalogue, seen, act, key=KEY):
    """Question of each conversation, -1 for a list."""
    slots = jax.jit(lambda seen, key: act((), seen, key))(seen, key)
    ids = np.take_along_axis(np.asarray(seen.action_ids), slots[:, None], axis=1)[:, 0]
    return np.where(ids < catalogue.num_items, -1, ids - catalogue.num_items)


def weights_of(catalogue, seen, sharpness):
    scores = np.asarray(jax.vmap(lambda s: ops.scores(catalogue, s))(seen), float)
    found = np.exp(sharpness * scores) if sharpness else 1 / (1 + np.exp(-scores))
    return found * np.asarray(seen.candidate)


def test_the_threshold_rule(catalogue, seen):
    asked = chosen(catalogue, seen, rules.threshold(catalogue, 12))
    sizes = np.asarray(seen.num_candidates)
    assert (sizes <= 12).any() and (sizes > 12).any()
    weights, has = weights_of(catalogue, seen, 0), np.asarray(catalogue.links.has)
    for e in range(16):
        share = weights[e] @ has / weights[e].sum()
        share = np.where(seen.askable[e], np.clip(share, 1e-12, 1 - 1e-12), 1e-12)
        bits = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
        if sizes[e] <= 12 or bits.max() < 1e-6:
            assert asked[e] == -1
        else:
            assert bits[asked[e]] > bits.max() - 1e-5


def test_maximum_entropy_asks_by_numbers_alone(catalogue, seen):
    act, questions = rules.maximum_entropy(catalogue), 0
    has, sizes = np.asarray(catalogue.links.has), np.asarray(seen.num_candidates)
    for seed in range(3):
        asked = chosen(catalogue, seen, act, jax.random.key(seed))
        assert (asked[sizes <= 10] == -1).all()
        for e in np.flatnonzero(asked >= 0):
            share = has[np.asarray(seen.candidate[e])].mean(axis=0)
            distance = np.where(seen.askable[e], np.abs(share - 0.5), 1.0)
            assert distance[asked[e]] < distance.min() + 1e-4
            questions += 1
    assert questions > 0


@pytest.mark.parametrize(("lists", "sharpness"), [(1, 0.0), (0, 0.0), (0, 3.0)])
def test_looking_ahead_by_brute_force(catalogue, seen, lists, sharpness):
    asked = chosen(catalogue, seen, rules.lookahead(catalogue, lists, sharpness))
    weights, has = weights_of(catalogue, seen, sharpness), catalogue.links.has
    for e in range(16):
        later = lists or benchmark.ACTIONS - int(seen.turn[e]) - 1

        def best(where, count, e=e):
            return np.sort(weights[e][where])[::-1][: 10 * count].sum()

        total, everything = weights[e].sum(), np.ones(60, bool)
        worth = {}
        for slot in range(10, 20):
            if seen.action_mask[e, slot]:
                p = int(seen.action_ids[e, slot]) - 60
                mine = np.asarray(has[:, p])
                share = weights[e][mine].sum() / total
                worth[p] = best(mine, later) / total
                worth[p] += (1 - share) * best(everything, later) / total
        now = best(everything, lists or later + 1) / total
        if not worth or max(worth.values()) < now + 1e-7:
            assert asked[e] == -1
        elif max(worth.values()) > now + 1e-5:
            assert worth[asked[e]] > max(worth.values()) - 1e-5


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


def test_a_list_of_all_candidates_hits_at_once_and_nobody_asks_for_ever(catalogue):
    pairs = np.array([[0, v] for v in range(60)])

    def play(size):
        act = rules.threshold(catalogue, size)
        return scoring.player(catalogue, benchmark.plain, act, chunk=20)((), pairs, KEY)

    always = play(float("inf"))
    assert always.questions.max() == 0
    # 60 items, ten at a time, minus those that never were candidates.
    assert always.action.min() == 0 and 0 <= always.action.max() <= 5
    assert (always.rank[always.action >= 0] >= 1).all()
    assert play(0).questions.max() <= 11


def test_what_happened_is_remembered(catalogue):
    env = learned.told(catalogue)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    for seed in range(30):
        (state, now), codes, hit = reset(jax.random.key(seed)), [1], False
        for slot in (10, rules.RECOMMEND, 10, 11):
            before = int(now.seen.accepted.sum())
            state, new = step(state, jnp.int32(slot), None)
            now = new.observation
            hit |= bool(new.info["hit"])
            grew = int(now.seen.accepted.sum()) > before
            codes.append(-2 if slot == rules.RECOMMEND else 1 if grew else -1)
        if not hit and {1, -1} <= set(codes[1:]):
            break
    else:
        pytest.fail("no conversation of the wanted kind")
    assert now.history.tolist() == codes + [0] * 10
    numbers = np.asarray(learned.numbers(catalogue, now))
    size = int(np.ceil(np.log2(int(now.seen.num_candidates))))
    assert numbers.shape == (learned.width(catalogue),)
    assert np.flatnonzero(numbers[15:]).tolist() == [size]


def test_two_actions_are_the_rule_and_a_list(catalogue):
    env, plain = learned.scpr_env(catalogue), benchmark.plain(catalogue)
    state, _ = env.reset(KEY)
    for action, slot in ((0, 10), (1, rules.RECOMMEND), (0, 10)):
        expected, _ = plain.step(state[0], jnp.int32(slot), None)
        state, _ = env.step(state, jnp.int32(action), KEY)
        np.testing.assert_array_equal(state[0].candidate, expected.candidate)
        np.testing.assert_array_equal(state[0].rejected_order, expected.rejected_order)


def test_what_is_discounted_in_reinforce():
    reward = jnp.array([[1.0], [0.0], [2.0]])
    np.testing.assert_allclose(ear.returns(reward)[:, 0], [1.98, 1.4, 2.0], rtol=1e-6)


def test_ear_asks_what_can_be_asked(catalogue, seen):
    params = ear.network(catalogue).init(KEY)
    told = learned.Told(seen, jnp.zeros((16, benchmark.TURNS), jnp.int32))
    slots = jax.jit(lambda told: ear.rule(catalogue)(params, told, KEY))(told)
    allowed = np.take_along_axis(np.asarray(seen.action_mask), slots[:, None], axis=1)
    assert allowed.all()


def test_few_candidates_are_recommended_by_score(catalogue):
    arm = learned.Arm(few=20)
    config = unicorn.Config(hidden_size=8, feedforward=8, capacity=64, batch_size=4)
    plain = learned.unicorn_parts(catalogue, learned.Arm(), config, 4)
    ending = learned.unicorn_parts(catalogue, arm, config, 4)
    env = plain.make_env(catalogue)
    keys = jax.random.split(KEY, 32)
    _, seen = jax.jit(jax.vmap(env.reset))(keys)
    params = jax.jit(plain.method.init)(KEY)
    before, after = (jax.jit(x.act)(params, seen, KEY) for x in (plain, ending))
    few = np.asarray(jnp.sum(seen.items >= 0, axis=-1) <= 20)
    assert few.any() and not few.all()
    assert (np.asarray(after.attribute)[few] == -1).all()
    np.testing.assert_array_equal(after.items[few], seen.item_actions[few])
    for name in ("attribute", "items", "index"):
        mine, other = (np.asarray(getattr(x, name))[~few] for x in (before, after))
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("actions", [14, 15])
def test_the_last_of_the_actions_counts(catalogue, actions):
    def make_env(about):
        return conversation.make(about, benchmark.options(about, actions))

    def late(params, seen, key):
        return jnp.where(seen.turn == actions - 1, rules.RECOMMEND, rules.ASK)

    pairs = np.array([[0, v] for v in range(20)])
    play = scoring.player(catalogue, make_env, late, chunk=20)
    assert {*play((), pairs, KEY).action.tolist()} - {-1} == {actions - 1}
    config = unicorn.Config(capacity=64, batch_size=4)
    arm = learned.Arm(actions=actions)
    parts = learned.unicorn_parts(catalogue, arm, config, 4)
    assert parts.make_env(catalogue).spec.time_limit == actions


def test_the_share_of_the_best_list(catalogue, seen):
    told = learned.Told(seen, jnp.zeros((16, benchmark.TURNS), jnp.int32))
    shown = jax.vmap(lambda now: learned.numbers(catalogue, now, 2.0))(told)
    plain = jax.vmap(lambda now: learned.numbers(catalogue, now))(told)
    np.testing.assert_array_equal(shown[:, :-1], plain)
    weights = weights_of(catalogue, seen, 2.0)
    best = np.sort(weights, axis=1)[:, ::-1][:, :10].sum(axis=1)
    np.testing.assert_allclose(shown[:, -1], best / weights.sum(axis=1), rtol=1e-5)


def arguments_of(tmp_path, **changes):
    given = {
        "out": tmp_path,
        "data": Path("somewhere/edges.npz"),
        "vectors": "transe",
        "fine": False,
        "label": "",
        "iterations": 8,
        "minibatches": 4,
        "points": 2,
        "conversations": 500,
    }
    return argparse.Namespace(**{**given, **changes})


def test_records_take_up_seeds(tmp_path):
    def found(seed, success):
        scores = {"success": success, "turns": 9.0, "gain": 0.1, "questions": 3.0}
        return {"seed": seed, **scores, "averaged": scores}

    arguments = arguments_of(tmp_path)
    settings = {"minibatches": 4, "sizes": (64, 64)}
    for seed, success in ((1, 0.5), (0, 0.25), (1, 0.75)):
        results.add_seed("scpr", settings, found(seed, success), arguments)
    record = json.loads((tmp_path / "scpr_coarse_transe.json").read_text())
    assert [x["seed"] for x in record["seeds"]] == [0, 1]
    assert record["mean"]["success"] == record["averaged"]["mean"]["success"] == 0.5
    assert record["command"].endswith(
        "edges.npz --arms scpr --vectors transe --conversations 500 --seeds 2 "
        "--first-seed 0 --iterations 8 --minibatches 4 --points 2"
    )
    results.add_seed("scpr", {"minibatches": 2}, found(4, 1.0), arguments)
    record = json.loads((tmp_path / "scpr_coarse_transe.json").read_text())
    assert [x["seed"] for x in record["seeds"]] == [4]


def test_vectors_are_kept(tmp_path):
    generator = np.random.default_rng(0)
    pairs = np.unique(generator.integers(0, (6, 20), (60, 2)), axis=0)
    mixed = generator.permutation(pairs)
    np.savez(
        tmp_path / "edges.npz",
        item_attribute=np.stack([np.arange(20), np.arange(20) % 4], 1),
        interaction_train=mixed[:20],
        interaction_valid=mixed[20:30],
        interaction_test=mixed[30:],
    )
    made = [
        benchmark.lastfm(tmp_path / "edges.npz", coarse=False, kept=tmp_path / "kept")
        for _ in range(2)
    ]
    assert len(list((tmp_path / "kept").iterdir())) == 1
    for one, two in zip(*map(jax.tree.leaves, made), strict=True):
        np.testing.assert_array_equal(one, two)


def test_differences_are_paired(tmp_path):
    generator = np.random.default_rng(0)
    base = generator.random((3, 400)) < 0.5
    one, other = base.astype(float), base.astype(float)
    one[:, :40] = 1.0
    found = compare.difference(one, other)
    assert found["mean"] == pytest.approx((one - other).mean())
    assert found["low"] < found["mean"] < found["high"]
    # Conversations that end alike add nothing to the interval of a difference.
    same = compare.difference(one[:1], one[:1])
    assert same["mean"] == same["low"] == same["high"] == 0.0
    alone = compare.difference(one, generator.permutation(one[0])[None])
    assert alone["high"] - alone["low"] > found["high"] - found["low"]

    record = {
        "arm": "one",
        "seeds": [{"found_with": "0d-"}, {"averaged": {"found_with": "-3e"}}],
    }
    (tmp_path / "one.json").write_text(json.dumps(record))
    assert compare.read(tmp_path, "one").turns.tolist() == [[1, 14, 16], [16, 4, 15]]
    found = compare.compared(*[compare.read(tmp_path, "one")] * 2)
    assert found["success"]["mean"] == found["turns"]["mean"] == 0.0
    (tmp_path / "rules.json").write_text(json.dumps({"ask": {"success": 0.5}}))
    with pytest.raises(ValueError, match="rules:ask has no `found_with`"):
        compare.read(tmp_path, "rules:ask")
