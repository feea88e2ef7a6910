"""The conversational simulator against sets in plain Python, and closed forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from envs import conversation
from envs.conversation import embedding, files, simulator, suite
from envs.conversation import unicorn as unicorn_env
from rlx.methods import unicorn
from rlx.ops import catalogue as links_lib
from rlx.ops import recommendation

WORLD = conversation.World(num_users=9, num_items=70, num_attributes=24, most=6)
CASES = {
    "dense": ({}, {}, True),
    "edges, as published": ({}, {"turns": "published"}, False),
    "filtering": ({}, {"filter_rejected": True, "max_turns": 9}, True),
    "enumerated": ({"num_parents": 7}, {"max_turns": 6}, False),
}
EPISODES = 256


def play(case: str):
    """Random episodes: all that was seen and done, `[steps, EPISODES, ...]`."""
    sizes, rules, dense = CASES[case]
    world = conversation.World(**{**vars(WORLD), **sizes})
    catalogue = conversation.synthetic(world, dense=dense)
    env = conversation.make(catalogue, conversation.Options(**rules))

    def turn(loop, key):
        state, seen = loop
        act_key, step_key = jax.random.split(key)
        logits = jnp.where(seen.action_mask, 0.0, -jnp.inf)
        slot = jax.random.categorical(act_key, logits)
        new, step = jax.vmap(env.step)(
            state, slot, jax.random.split(step_key, EPISODES)
        )
        return (new, step.observation), (seen, slot, step, state.target)

    @jax.jit
    def run(key):
        keys = jax.random.split(key, env.spec.time_limit + 1)
        start = jax.vmap(env.reset)(jax.random.split(keys[0], EPISODES))
        return jax.lax.scan(turn, start, keys[1:])[1]

    return catalogue, env, jax.device_get(run(jax.random.key(1)))


@functools.cache
def played(case: str):
    return play(case)


def has_matrix(catalogue) -> np.ndarray:
    column = functools.partial(links_lib.carriers, catalogue.links)
    return np.asarray(jax.vmap(column)(jnp.arange(catalogue.num_attributes))).T


class Sets:
    """One conversation with sets; the agent's list and question are given to it."""

    def __init__(self, has, children, target, first, rules):
        self.of = [set(np.flatnonzero(row)) for row in has]
        self.children = [{int(p) for p in row if p >= 0} for row in children]
        self.target, self.rules, self.turn = target, rules, 0
        self.accepted, self.rejected = [first], []
        self.candidates = {v for v, held in enumerate(self.of) if first in held}

    def answer(self, question, listed):
        rules, rank = self.rules, 0
        if rules.turns == "published" and self.turn == rules.max_turns - 1:
            self.turn += 1
            return np.float32(rules.reward_quit), True, 0
        if question is not None:
            known = {*self.accepted, *self.rejected}
            asked = sorted(self.children[question] - known)
            yes = [p for p in asked if p in self.of[self.target]]
            no = [p for p in asked if p not in yes]
            self.accepted += yes
            self.rejected += no
            self.candidates = {v for v in self.candidates if set(yes) <= self.of[v]}
            if rules.filter_rejected:
                self.candidates = {
                    v for v in self.candidates if not set(no) & self.of[v]
                }
            reward = rules.reward_accept if yes else rules.reward_reject
        elif self.target in listed:
            rank, reward = listed.index(self.target) + 1, rules.reward_hit
        else:
            self.candidates -= set(listed)
            reward = rules.reward_miss
        self.turn += 1
        late = self.turn == rules.max_turns and not rank
        reward = np.float32(reward)
        if late:
            reward += np.float32(rules.reward_quit)
        return reward, bool(rank) or late, rank


@pytest.mark.parametrize("case", CASES)
def test_equals_sets_in_plain_python(case: str) -> None:
    """1,024 random episodes in four variants: sets, rewards and ranks to the bit."""
    catalogue, env, (seen, slot, step, target) = played(case)
    rules = conversation.Options(**CASES[case][1])
    has, children = has_matrix(catalogue), np.asarray(catalogue.children)
    steps = ends = 0
    for e in range(EPISODES):
        first = int(seen.accepted_order[0, e, 0])
        assert has[target[0, e], first]
        sets = Sets(has, children, int(target[0, e]), first, rules)
        for t in range(env.spec.time_limit):
            now = set(np.flatnonzero(seen.candidate[t, e]))
            assert now == sets.candidates and sets.target in now
            assert seen.num_candidates[t, e] == len(now)
            for order, said in (
                (seen.accepted_order, sets.accepted),
                (seen.rejected_order, sets.rejected),
            ):
                assert [p for p in order[t, e] if p >= 0] == said
            assert set(np.flatnonzero(seen.accepted[t, e])) == set(sets.accepted)
            assert set(np.flatnonzero(seen.rejected[t, e])) == set(sets.rejected)
            known = {*sets.accepted, *sets.rejected}
            around = set().union(*(sets.of[v] for v in now)) - known
            askable = {q for q, row in enumerate(sets.children) if row & around}
            assert set(np.flatnonzero(seen.askable[t, e])) == askable
            chosen = int(seen.action_ids[t, e, slot[t, e]])
            question = chosen - has.shape[0] if chosen >= has.shape[0] else None
            best = seen.item_ids[t, e][seen.item_mask[t, e]][:10].tolist()
            listed = [chosen, *(v for v in best if v != chosen)][:10]
            reward, over, rank = sets.answer(question, listed)
            assert reward == step.reward[t, e]
            assert over == step.terminated[t, e] and rank == step.info["rank"][t, e]
            steps += 1
            if over:
                ends += 1
                break
    assert ends == EPISODES and steps > 1.5 * EPISODES


@pytest.mark.parametrize("case", ["dense", "edges, as published"])
def test_scores_entropies_and_actions(case: str) -> None:
    """Against sums over sets in double precision."""
    catalogue, env, (seen, *_) = played(case)
    has = has_matrix(catalogue)
    users, items, attributes = (
        np.asarray(x, np.float64)
        for x in (
            catalogue.user_embedding,
            catalogue.item_embedding,
            catalogue.attribute_embedding,
        )
    )
    for e in range(0, EPISODES, 16):
        for t in (0, 3, 6):
            pick = jax.tree.map(lambda x: x[t, e], seen)  # noqa: B023
            score = items @ users[pick.user] + items @ attributes[pick.accepted].sum(0)
            for p in np.flatnonzero(pick.rejected):
                score -= has[:, p] * (items @ attributes[p])
            np.testing.assert_allclose(
                pick.item_score[pick.item_mask],
                np.sort(score[pick.candidate])[::-1][: env.spec.pruning.num_nodes],
                atol=1e-5,
            )
            weight = pick.candidate / (1 + np.exp(-score))
            share = weight @ has / weight.sum()
            inner = np.clip(share, 1e-12, 1 - 1e-12)
            entropy = -inner * np.log2(inner) - (1 - inner) * np.log2(1 - inner)
            entropy *= pick.askable
            np.testing.assert_allclose(pick.entropy, entropy, atol=1e-5)
            kept = pick.action_mask[10:]
            asked = pick.action_ids[10:][kept] - len(items)
            np.testing.assert_allclose(
                entropy[asked],
                np.sort(entropy[pick.askable])[::-1][: len(asked)],
                atol=1e-5,
            )
            assert kept.sum() == min(10, pick.askable.sum())


def test_lists_and_matrix_agree_and_replay_rebuilds() -> None:
    dense, edges = (conversation.synthetic(WORLD, dense=x) for x in (True, False))
    _, env, (seen, *_) = played("dense")
    rows = jax.tree.map(lambda x: jnp.asarray(x[4]), seen)
    stored = jax.vmap(conversation.compress)(rows)
    held = sum(x[0].size * x.dtype.itemsize for x in jax.tree.leaves(stored))
    assert held == env.spec.observation.shape[0]
    for catalogue in (dense, edges):
        rebuild = functools.partial(
            conversation.observe, catalogue, pruning=env.spec.pruning
        )
        again = jax.jit(jax.vmap(rebuild))(stored)
        for name in ("candidate", "accepted", "rejected", "askable", "action_mask"):
            np.testing.assert_array_equal(getattr(again, name), getattr(rows, name))
        for name in ("item_score", "item_weight", "entropy"):
            np.testing.assert_allclose(
                getattr(again, name), getattr(rows, name), atol=1e-6
            )


def test_always_recommending_among_equals_has_a_closed_form() -> None:
    """All alike: P(hit within n turns) = min(1, 10n/64); each list is ten new items."""
    zeros = np.zeros((64, 2))
    catalogue = conversation.catalogue(
        np.stack([np.arange(64), np.zeros(64, int)], 1),
        users=zeros[:1],
        items=zeros,
        attributes=zeros[:1],
        interactions=np.zeros((1, 2), int),
    )
    options = simulator.fitted(catalogue, conversation.Options(max_turns=8))
    targets = jnp.arange(64)
    begin = functools.partial(simulator.start, catalogue, options, 0)
    state, _ = jax.vmap(begin)(targets, jax.random.split(jax.random.key(0), 64))
    advance = jax.jit(
        jax.vmap(functools.partial(simulator.step, catalogue, options, action=0))
    )
    turn, rank, success = np.full(64, 8), np.zeros(64, int), np.zeros(64, bool)
    for t in range(8):
        state, step = advance(state)
        new = np.asarray(step.info["hit"]) & ~success
        turn[new], rank[new] = t, np.asarray(step.info["rank"])[new]
        success |= new
    rate = recommendation.success_rate(jnp.array(turn), jnp.array(success), 8)
    np.testing.assert_allclose(rate, np.minimum(1, 10 * np.arange(1, 9) / 64))
    np.testing.assert_array_equal(turn, np.arange(64) // 10)
    np.testing.assert_array_equal(rank, np.arange(64) % 10 + 1)


@pytest.mark.parametrize("turns", ["agent", "published"])
def test_turns_are_counted_exactly(turns: str) -> None:
    """An agent that only asks: 15 steps either way, but 14 questions as published."""
    # The target alone has more attributes than there are turns.
    world = conversation.World(num_attributes=40, least=20, most=20)
    env = conversation.make(
        conversation.synthetic(world), conversation.Options(turns=turns)
    )
    state, seen = env.reset(jax.random.key(3))
    advance, rewards, asked = jax.jit(env.step), [], 0
    for t in range(15):
        before = int(jnp.sum(seen.accepted) + jnp.sum(seen.rejected))
        assert bool(seen.action_mask[10])
        state, step = advance(state, jnp.int32(10), jax.random.key(0))
        seen = step.observation
        asked += int(jnp.sum(seen.accepted) + jnp.sum(seen.rejected)) - before
        rewards.append(float(step.reward))
        assert bool(step.terminated) == (t == 14) and not step.truncated
    accepted = int(jnp.sum(seen.accepted)) - 1
    assert asked == (14 if turns == "published" else 15)
    expected = 0.01 * accepted - 0.1 * (asked - accepted) - 0.3
    np.testing.assert_allclose(sum(rewards), expected, rtol=1e-5)
    if turns == "published":
        np.testing.assert_allclose(rewards[-1], -0.3)


def test_a_list_of_ones_own_counts_candidates_once() -> None:
    """Items outside C and repeated ones are ignored, and ranks skip them."""
    pruning = conversation.Pruning(num_questions=24)
    env = conversation.make(
        conversation.synthetic(WORLD), conversation.Options(pruning=pruning)
    )
    state, seen = env.reset(jax.random.key(5))
    inside = np.flatnonzero(seen.candidate)
    outside = np.flatnonzero(~np.asarray(seen.candidate))
    others = [v for v in inside if v != state.target]
    listed = [outside[0], others[0], others[0], int(state.target), 10**6, -1]
    items = jnp.array(listed + [-1] * 4, jnp.int32)
    _, step = env.step(state, conversation.Choice(jnp.int32(0), items), None)
    assert bool(step.info["hit"]) and int(step.info["rank"]) == 2
    _, step = env.step(
        state, conversation.Choice(jnp.int32(0), items.at[3].set(-1)), None
    )
    gone = set(inside) - set(np.flatnonzero(step.observation.candidate))
    assert gone == {others[0]} and float(step.reward) == np.float32(-0.1)
    masked = int(np.flatnonzero(~np.asarray(seen.action_mask))[0])
    after, step = env.step(state, jnp.int32(masked), None)
    assert float(step.reward) == np.float32(-0.1) and int(after.turn) == 1
    np.testing.assert_array_equal(after.candidate, state.candidate)


@pytest.mark.parametrize("dense", [True, False])
def test_the_graph_of_unicorn(dense: bool) -> None:
    catalogue = conversation.synthetic(WORLD, dense=dense)
    env, plain = unicorn_env.make(catalogue), conversation.make(catalogue)
    known = unicorn.knowledge_of(env.spec)
    items, attributes = jnp.arange(70), jnp.arange(24)
    np.testing.assert_array_equal(known.has(items, attributes), has_matrix(catalogue))
    state, graph = env.reset(jax.random.key(0))
    _, seen = plain.reset(jax.random.key(0))
    np.testing.assert_array_equal(graph.item_actions >= 0, seen.action_mask[:10])
    asked = np.asarray(graph.attribute_actions)
    np.testing.assert_array_equal(
        asked[asked >= 0] + 70, seen.action_ids[10:][seen.action_mask[10:]]
    )
    total = float(graph.weights.sum() + graph.rest[0])
    scores = np.asarray(conversation_scores(catalogue, seen))
    expected = (1 / (1 + np.exp(-scores)))[np.asarray(seen.candidate)].sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    # 70 items: 0 to 7 bits; 15 turns; shares of the answers; weight of the best ten.
    assert graph.features.shape == (known.num_features,) == (8 + 15 + 3,)
    size = int(np.ceil(np.log2(int(seen.num_candidates))))
    assert np.flatnonzero(graph.features[:23]).tolist() == [size, 8]
    weights = np.sort(1 / (1 + np.exp(-scores[np.asarray(seen.candidate)])))[::-1]
    np.testing.assert_allclose(
        graph.features[23:], [1 / 15, 0, weights[:10].sum() / expected], rtol=1e-5
    )
    assert graph.action_features.shape == (20, known.num_action_features)
    held = has_matrix(catalogue)[np.asarray(seen.candidate)]
    inside = 1 / (1 + np.exp(-scores[np.asarray(seen.candidate)]))
    for slot, attribute in enumerate(asked):
        share = inside @ held[:, attribute] / inside.sum()
        row = [0, share, seen.entropy[attribute]] if attribute >= 0 else [0, 0, 0]
        np.testing.assert_allclose(graph.action_features[10 + slot], row, rtol=1e-5)


def conversation_scores(catalogue, seen):
    from rlx.ops import conversation as ops

    return ops.scores(catalogue, seen)


def tiny(**changes):
    vectors = np.ones((12, 2))
    given = {
        "item_attribute": np.stack([np.arange(12), np.arange(12) % 3], 1),
        "users": vectors[:2],
        "items": vectors,
        "attributes": vectors[:3],
        "interactions": np.array([[0, 1], [1, 11]]),
        **changes,
    }
    return conversation.catalogue(given.pop("item_attribute"), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_attribute": np.array([[0, 0]])}, "11 items have no attribute, item 1"),
        (
            {"item_attribute": np.array([[0, 3]])},
            r"item_attribute\[0, 1\] is 3.*0 to 2",
        ),
        ({"interactions": np.array([[0, 12]])}, r"interactions\[0, 1\] is 12"),
        ({"interactions": np.array([[-1, 2]])}, r"interactions\[0, 0\] is -1"),
        ({"interactions": np.array([0, 2])}, "must be pairs"),
        ({"interactions": np.array([[0.5, 2.0]])}, "must hold whole numbers"),
        (
            {"items": np.full((12, 2), np.nan)},
            "items: the embedding of 0 is not finite",
        ),
        ({"users": np.ones((2, 3))}, "different widths"),
        ({"users": np.ones(2)}, "must be a matrix"),
        ({"parents": np.array([0, 2, 2])}, "without a gap"),
        ({"parents": np.array([0, 1])}, "one whole number for each"),
    ],
)
def test_impossible_catalogues_are_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_impossible_rules_are_refused() -> None:
    small = tiny(
        items=np.ones((9, 2)),
        item_attribute=np.stack([np.arange(9), np.arange(9) % 3], 1),
        interactions=np.array([[0, 0]]),
    )
    with pytest.raises(ValueError, match="9 items, fewer than the 10"):
        conversation.make(small)
    pruning = conversation.Pruning(num_items=3, list_size=3)
    conversation.make(small, conversation.Options(pruning=pruning))
    with pytest.raises(ValueError, match="no interactions"):
        conversation.make(tiny(interactions=np.zeros((0, 2), int)))
    with pytest.raises(ValueError, match="turns must be"):
        conversation.Options(turns="mine")
    with pytest.raises(ValueError, match="no action"):
        conversation.Options(turns="published", max_turns=1)
    with pytest.raises(ValueError, match="num_nodes=4"):
        conversation.Pruning(num_nodes=4)
    with pytest.raises(ValueError, match="order these numbers"):
        conversation.World(most=40)


def test_made_by_name() -> None:
    env = envs.make(
        "conversation/synthetic", num_items=40, max_turns=4, list_size=5, seed=3
    )
    assert env.spec.time_limit == 4 and env.spec.catalogue.num_items == 40
    assert env.spec.pruning.list_size == 5 and env.spec.pruning.num_nodes == 40
    graph = envs.make("conversation/synthetic_graph")
    assert graph.spec.name == "conversation/synthetic_graph"
    with pytest.raises(TypeError, match="no option colour; its options: .*num_users"):
        envs.make("conversation/synthetic", colour=1)


def lists():
    return {
        "item_attribute": np.array([[0, 0], [0, 1], [1, 2], [2, 1], [2, 1]]),
        "attribute_group": np.array([[1, 0], [0, 1], [2, 0], [1, 1]]),
        "interaction_train": np.array([[0, 1], [1, 0]]),
        "interaction_valid": np.array([[0, 0]]),
        "interaction_test": np.array([[3, 2]]),
    }


def test_made_from_a_file(tmp_path) -> None:
    path = tmp_path / "lists.npz"
    np.savez(path, **lists())
    few = {"num_nodes": 10, "path": str(path), "list_size": 2}
    with pytest.raises(ValueError, match="3 items, fewer than the 10"):
        envs.make("conversation/file", **few)
    catalogue = suite.from_file(path, groups=True, split="test")
    assert catalogue.interactions.tolist() == [[3, 2]]
    vectors = embedding.als(embedding.facts(files.load(path, groups=True)))
    np.testing.assert_array_equal(catalogue.user_embedding, vectors.users)
    other, again = (suite.from_file(path, vectors="random") for _ in range(2))
    np.testing.assert_array_equal(other.item_embedding, again.item_embedding)
    assert float(jnp.abs(other.item_embedding).min()) > 0
    with pytest.raises(ValueError, match="vectors must be one of als, transe, random"):
        suite.from_file(path, vectors="best")
    with pytest.raises(TypeError, match="needs a path"):
        envs.make("conversation/file_graph")
    with pytest.raises(TypeError, match="no option num_users; its options: .*split"):
        envs.make("conversation/file", path=str(path), num_users=3)


def test_files_have_two_views(tmp_path) -> None:
    path = tmp_path / "lists.npz"
    np.savez(path, **lists())
    fine, coarse = files.load(path), files.load(path, groups=True)
    assert (fine.num_users, fine.num_items, fine.num_attributes) == (4, 3, 3)
    assert fine.item_attribute.tolist() == [[0, 0], [0, 1], [1, 2], [2, 1]]
    assert coarse.num_attributes == 2
    # Item 0 has tags 0 (group 1) and 1 (groups 0 and 1); 1 has 2 (0); 2 has 1.
    expected = [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1]]
    assert coarse.item_attribute.tolist() == expected
    assert coarse.interactions["test"].tolist() == [[3, 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interaction_test": None}, "lacks interaction_test"),
        ({"interaction_valid": np.array([[0, 3]])}, r"interaction_valid\[0, 1\] is 3"),
        ({"item_attribute": np.array([[1, 0], [2, 1]])}, "item 0 first"),
        ({"item_attribute": np.array([1, 0])}, "must be pairs"),
        ({"attribute_group": None}, "lacks attribute_group"),
        ({"attribute_group": np.array([[0, 0]])}, "have no attribute"),
        ({"user_attribute": np.array([[0, 9]])}, r"user_attribute\[0, 1\] is 9"),
        ({"item_attribute": np.array([[None, 0]])}, "no intact .npz"),
        ({"item_attribute": np.array([[0.5, 0]])}, "must hold whole numbers"),
        ({"item_attribute": np.zeros((0, 2), int)}, "item_attribute is empty"),
        ({"interaction_train": np.array([[-1, 0]])}, r"train\[0, 0\] is -1"),
        (
            {"interaction_test": np.array([[3, 2], [1, 0], [0, 1]])},
            r"train and interaction_test share 2 pairs, \(0, 1\) first",
        ),
        (
            {"interaction_test": np.array([[0, 0]])},
            r"valid and interaction_test share 1 pairs, \(0, 0\) first",
        ),
    ],
)
def test_malformed_files_are_refused(tmp_path, change, message: str) -> None:
    kept = {k: v for k, v in {**lists(), **change}.items() if v is not None}
    path = tmp_path / "lists.npz"
    np.savez(path, **kept)
    with pytest.raises(ValueError, match=message) as error:
        files.load(path, groups=True)
    assert str(path) in str(error.value)


def test_missing_and_damaged_files_are_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no file .*describes the format"):
        files.load(tmp_path / "absent.npz")
    path = tmp_path / "lists.npz"
    np.savez(path, **lists())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="no intact"):
        files.load(path)
