"""UNICORN: candidates, lists by Q, padding, the released code's deviations."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from rlx.data.prioritised import prioritised
from rlx.methods import _conversation, _q_learning, unicorn
from rlx.ops.catalogue import Catalogue, Dense
from rlx.ops.conversation import ConversationSpec
from rlx.types import Array, Box, Discrete, Env, EnvSpec, Step, Transition

NUM_USERS, NUM_ITEMS, NUM_ATTRIBUTES, SIZE = 3, 12, 5, 4
TURNS, NODES, ACTIONS, QUESTIONS = 3, 8, 4, 3
BELONGS = jnp.asarray(
    np.random.default_rng(0).random((NUM_ITEMS, NUM_ATTRIBUTES)) < 0.5
)
SMALL = {"hidden_size": 8, "num_heads": 2, "feedforward": 8}
CHOICE = unicorn.Choice(
    attribute=Discrete(NUM_ATTRIBUTES),
    items=Box((ACTIONS,), -1, NUM_ITEMS - 1, "int32"),
    index=Discrete(ACTIONS + QUESTIONS),
)
SPEC = EnvSpec("small", Box((1,)), CHOICE, 3)


def conformance_cases():
    return {"paper": (make(), source())}


def knowledge() -> unicorn.Knowledge:
    generator = np.random.default_rng(1)
    vectors = [
        jnp.float32(generator.normal(size=(number, SIZE)))
        for number in (NUM_USERS, NUM_ITEMS, NUM_ATTRIBUTES)
    ]
    return unicorn.Knowledge(
        *vectors, lambda i, a: BELONGS[i[..., :, None], a[..., None, :]]
    )


def conversation(key: Array, user: Array, turn: Array) -> unicorn.GraphState:
    """Something to observe, with fewer candidates the longer it lasts."""
    first, second, third = jax.random.split(key, 3)
    candidate = jax.random.permutation(first, NUM_ITEMS) >= 3 * turn
    return unicorn.graph_state(
        user,
        jnp.where(jnp.arange(TURNS) <= turn, jnp.arange(TURNS), -1),
        candidate,
        jax.random.normal(second, (NUM_ITEMS,)),
        jnp.where(
            jnp.arange(QUESTIONS) < QUESTIONS - turn,
            jax.random.permutation(third, NUM_ATTRIBUTES)[:QUESTIONS],
            -1,
        ),
        counts=lambda mask: mask @ BELONGS.astype(jnp.float32),
        num_items=NODES,
        num_actions=ACTIONS,
    )


@struct.dataclass
class Talk:
    user: Array
    turn: Array


def talks() -> Env:
    """Ends after three turns; a list earns what its first item's number says."""

    def reset(key):
        user_key, key = jax.random.split(key)
        user = jax.random.randint(user_key, (), 0, NUM_USERS)
        return Talk(user, jnp.int32(0)), conversation(key, user, jnp.int32(0))

    def step(state, action, key):
        turn = state.turn + 1
        listed = action.items[0].astype(jnp.float32) / NUM_ITEMS
        return Talk(state.user, turn), Step(
            observation=conversation(key, state.user, turn),
            reward=jnp.where(action.attribute < 0, listed, -0.1),
            terminated=turn >= TURNS,
            truncated=jnp.bool_(False),
        )

    return Env(reset, step, SPEC)


def source(num_minibatches: int = 2):
    return prioritised(
        talks(),
        num_envs=4,
        capacity=16,
        warmup=0,
        batch_size=8,
        num_minibatches=num_minibatches,
    )


def make(**fields):
    config = unicorn.Config(**{**SMALL, "num_minibatches": 2, **fields})
    return unicorn.make(SPEC, config, knowledge=knowledge())


@pytest.fixture(scope="module")
def observations() -> unicorn.GraphState:
    keys = jax.random.split(jax.random.key(1), 6)
    return jax.jit(jax.vmap(conversation))(
        keys, jnp.arange(6) % NUM_USERS, jnp.arange(6) % TURNS
    )


def batch(observations: unicorn.GraphState) -> Transition:
    number = observations.user.shape[0]
    keys = jax.random.split(jax.random.key(2), 2)
    return Transition(
        observation=observations,
        action=unicorn.Choice(
            attribute=jnp.zeros((number,), jnp.int32),
            items=jnp.zeros((number, ACTIONS), jnp.int32),
            index=jax.random.randint(keys[0], (number,), 0, ACTIONS),
        ),
        reward=jax.random.normal(keys[1], (number,)),
        discount=jnp.float32(jnp.arange(number) % 2),
        truncated=jnp.zeros((number,), bool),
        next_observation=jax.tree.map(lambda x: x[::-1], observations),
        extras={"importance": jnp.linspace(0.2, 1.0, number)},
    )


def params_of(method, seed: int = 0):
    return jax.jit(method.init)(jax.random.key(seed))


@functools.cache
def plain_params(seed: int = 0):
    return params_of(make(), seed)


def test_nodes_are_the_best_candidates_and_the_rest_is_one_node():
    scores = jnp.array([3.0, -1.0, 2.0, 100.0, 0.0])
    has = jnp.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 0, 1], [0, 1, 1]])

    def state(num_items):
        return unicorn.graph_state(
            jnp.int32(1),
            jnp.array([2, -1]),
            jnp.array([True, True, False, True, False]),
            scores,
            jnp.array([1, -1]),
            counts=lambda mask: mask @ has.astype(jnp.float32),
            num_items=num_items,
            num_actions=2,
        )

    whole, cut = state(4), state(2)
    weights = [1.0, 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(1)), 0.0]
    np.testing.assert_array_equal(whole.items, [3, 0, 1, -1])
    np.testing.assert_allclose(whole.weights, weights, rtol=1e-6)
    np.testing.assert_array_equal(whole.rest, np.zeros(5))
    np.testing.assert_array_equal(cut.items, [3, 0])
    # Item 1 is left over: it has attributes 1 and 2.
    np.testing.assert_allclose(cut.rest, [weights[2], 1, 0, 1, 0], rtol=1e-6)
    np.testing.assert_array_equal(whole.item_actions, [3, 0])
    for graph in (whole, cut):
        degree = jnp.sum(graph.weights) + graph.rest[0]
        np.testing.assert_allclose(degree, np.sum(weights), rtol=1e-6)


def test_a_list_holds_the_candidates_by_their_value_and_an_ask_its_attribute():
    state = unicorn.GraphState(
        user=jnp.zeros((2,), jnp.int32),
        accepted=jnp.zeros((2, 1), jnp.int32),
        items=jnp.zeros((2, 3), jnp.int32),
        weights=jnp.zeros((2, 3)),
        rest=jnp.zeros((2, 4)),
        item_actions=jnp.array([[7, 8, -1], [7, 8, 9]]),
        attribute_actions=jnp.array([[3, 4], [3, 4]]),
        features=jnp.zeros((2, 0)),
        action_features=jnp.zeros((2, 5, 0)),
    )
    values = jnp.array([[1.0, 2.0, 9.0, 0.0, 0.0], [3.0, 1.0, 2.0, 0.0, 5.0]])
    choice = _conversation.choose(state, values, jnp.array([1, 4]))
    np.testing.assert_array_equal(choice.attribute, [-1, 4])
    np.testing.assert_array_equal(choice.items, [[8, 7, -1], [7, 9, 8]])


def test_what_is_not_allowed_is_never_chosen(observations):
    method = make(epsilon_start=1.0, epsilon_end=1.0)
    params = plain_params()
    act = jax.jit(
        lambda key: method.act(params, jnp.int32(0), observations, (), key)[0]
    )
    allowed = np.asarray(_conversation.allowed(observations))
    seen = np.zeros_like(allowed)
    for seed in range(60):
        index = np.asarray(act(jax.random.key(seed)).index)
        seen[np.arange(6), index] = True
    np.testing.assert_array_equal(seen, allowed)


def padded(state: unicorn.GraphState) -> unicorn.GraphState:
    """Nodes, turns and questions that are not there, before and behind."""

    def more(x, value=-1):
        width = [(0, 0)] * (x.ndim - 1) + [(0, 2)]
        return jnp.pad(x, width, constant_values=value)

    return state.replace(
        accepted=more(state.accepted),
        items=more(state.items),
        weights=more(state.weights, 0.0),
        rest=jnp.insert(
            more(state.rest, 0.0), jnp.array([1 + TURNS] * 2), 0.0, axis=-1
        ),
        attribute_actions=more(state.attribute_actions),
        action_features=jnp.pad(state.action_features, [(0, 0), (0, 2), (0, 0)]),
    )


def test_padding_changes_no_value(observations):
    network = unicorn._network(unicorn.Config(**SMALL), knowledge())
    params = plain_params()
    apply = jax.jit(network.apply)
    plain, more = apply(params, observations), apply(params, padded(observations))
    np.testing.assert_allclose(plain, more[:, :-2], atol=1e-5)


def test_values_do_not_depend_on_who_else_is_in_the_batch(observations):
    one = jax.tree.map(lambda x: x[:1], observations)
    for fields, same in (({}, True), ({"across_batch": True}, False)):
        config = unicorn.Config(**SMALL, **fields)
        network = unicorn._network(config, knowledge())
        params = plain_params()  # the same, whatever the fields
        apply = jax.jit(network.apply)
        together, single = apply(params, observations)[:1], apply(params, one)
        assert (float(jnp.abs(together - single).max()) < 1e-5) == same
        # While acting nobody knows of the others, whatever the network does.
        alone = jax.jit(unicorn._one_by_one(network))(params, observations)[:1]
        np.testing.assert_allclose(alone, single, atol=1e-5)


def test_weights_multiply_errors_or_their_mean(observations):
    data = batch(observations)
    method, released = make(), make(weigh_elements=False)
    params, target = plain_params(), plain_params(1)

    @jax.jit
    def losses(weights):
        given = data.replace(extras={"importance": weights})
        arguments = (params, target, (), given, jax.random.key(0))
        return method.loss_fn(*arguments)[0], released.loss_fn(*arguments)[0]

    ones = jnp.ones(6)
    single = np.array([losses(ones.at[:].set(0).at[i].set(1.0))[0] for i in range(6)])
    weights = data.extras["importance"]
    weighed, rescaled = losses(weights)
    np.testing.assert_allclose(weighed, np.sum(single * weights), rtol=1e-5)
    np.testing.assert_allclose(rescaled, np.mean(weights) * np.sum(single), rtol=1e-5)


def test_the_target_has_an_encoder_of_its_own_or_not():
    method, released = make(tau=0.25), make(tau=0.25, target_encoder=False)
    new = {name: jnp.float32(1) for name in ("encoder", "heads", "rest")}
    old = {name: jnp.float32(0) for name in new}
    for made, share in ((method, 0.25), (released, 1.0)):
        moved = made.target_update(new, old, jnp.int32(1))
        np.testing.assert_allclose(moved["encoder"], share)
        np.testing.assert_allclose(moved["heads"], 0.25)


def test_vectors_begin_where_they_were_trained_unless_discarded():
    given = knowledge()
    kept, drawn = plain_params(), params_of(make(pretrained=False))
    np.testing.assert_array_equal(kept["vectors"]["items"], given.item_vectors)
    assert np.abs(drawn["vectors"]["items"] - given.item_vectors).min() > 0
    fixed = jax.eval_shape(make(learn_vectors=False).init, jax.random.key(0))
    assert "vectors" not in fixed


def test_without_edges_weights_do_not_matter(observations):
    other = observations.replace(weights=observations.weights * 0.3)
    for fields, same in (({}, False), ({"convolve": False}, True)):
        config = unicorn.Config(**SMALL, **fields)
        network = unicorn._network(config, knowledge())
        params = plain_params()  # the same, whatever the fields
        apply = jax.jit(network.apply)
        gap = apply(params, observations) - apply(params, other)
        assert (float(jnp.abs(gap).max()) == 0) == same


def test_gradients_are_clipped_where_they_are_to_be():
    """Adam's first moment is a tenth of the gradient that reached it."""
    gradient = {name: jnp.full((2,), -5.0) for name in ("encoder", "heads", "rest")}
    assert set(gradient) < set(plain_params())
    for clipped in (True, False):
        method = make(clip=0.5, clip_encoder=clipped, weight_decay=0.0)
        params = jax.tree.map(jnp.zeros_like, gradient)
        state = method.optimizer.init(params)
        _, state = method.optimizer.update(gradient, state, params)
        reached = {
            jax.tree_util.keystr(path): x
            for path, x in jax.tree_util.tree_leaves_with_path(state)
            if "mu" in jax.tree_util.keystr(path)
        }
        assert len(reached) == 3
        for name, moment in reached.items():
            free = "encoder" in name and not clipped
            np.testing.assert_allclose(moment, -0.5 if free else -0.05, rtol=1e-5)


def test_as_coded_names_fields_that_exist():
    names = {field.name for field in dataclasses.fields(unicorn.Config)}
    assert set(unicorn.AS_CODED) <= names


def test_impossible_fields_are_named():
    with pytest.raises(ValueError, match="no multiple of num_heads"):
        make(hidden_size=10, num_heads=4)
    with pytest.raises(ValueError, match="num_convolutions must be at least 1"):
        make(num_convolutions=0)


def test_features_are_seen_where_they_are_asked_for(observations):
    """Another turn is another value, and another entropy that of its action alone."""
    keys = jax.random.split(jax.random.key(3))
    seen = observations.replace(
        features=jax.random.normal(keys[0], (6, 2)),
        action_features=jax.random.normal(keys[1], (6, ACTIONS + QUESTIONS, 3)),
    )
    turned = seen.replace(features=seen.features + 1)
    # Without the mean of advantages actions do not touch each other.
    other = seen.replace(action_features=seen.action_features.at[:, 0].add(1.0))
    known = knowledge()._replace(num_features=2, num_action_features=3)
    for fields in ({}, {"state_features": True, "action_features": True}):
        config = unicorn.Config(**SMALL, **fields, centred=False)
        network = unicorn._network(config, known)
        params = jax.jit(network.init)(jax.random.key(0))
        apply = jax.jit(network.apply)
        values, later, wider = (apply(params, x) for x in (seen, turned, other))
        assert bool(jnp.all(values == later)) == (not fields)
        moved = np.asarray(jnp.any(values != wider, axis=0))
        assert moved.tolist() == [bool(fields)] + [False] * (ACTIONS + QUESTIONS - 1)
    with pytest.raises(ValueError, match="state_features: the environment's graphs"):
        make(state_features=True)


def test_what_is_known_comes_from_the_catalogue():
    with pytest.raises(ValueError, match="small is no conversation"):
        unicorn.make(SPEC)
    about = Catalogue(
        *(jnp.ones((n, SIZE)) for n in (NUM_USERS, NUM_ITEMS, NUM_ATTRIBUTES)),
        links=Dense(has=BELONGS, affinity=jnp.zeros(BELONGS.shape)),
        children=jnp.arange(NUM_ATTRIBUTES)[:, None],
        interactions=jnp.zeros((1, 2), jnp.int32),
    )
    spec = ConversationSpec("talk", Box((1,)), CHOICE, 3, catalogue=about)
    params = jax.eval_shape(unicorn.make(spec).init, jax.random.key(0))
    assert params["vectors"]["items"].shape == (NUM_ITEMS, SIZE)
    with pytest.raises(ValueError, match="environment whose name ends in _graph"):
        unicorn.make(spec).act(params, 0, jnp.zeros((2, 3)), (), None)


def test_the_loss_is_the_shared_one():
    assert unicorn.loss is _q_learning.loss
