"""EAR-like: a softmax over all questions and "recommend", by imitation and REINFORCE.

Lei et al. 2020, https://arxiv.org/abs/2002.09102.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.unicorn import learned, rules
from experiments.unicorn.benchmark import ACTIONS
from experiments.unicorn.learned import NUM_ENVS, Told
from experiments.unicorn.scoring import Act
from rlx.networks.mlp import mlp
from rlx.ops import catalogue as links_lib
from rlx.ops import conversation, exploration
from rlx.ops.catalogue import Catalogue
from rlx.types import Array, Key, Network, Params, PyTree

DISCOUNT = 0.7


def network(catalogue: Catalogue) -> Network:
    """Logits of every question, then of recommending."""
    inputs = 2 * catalogue.num_questions + learned.width(catalogue)
    sizes = (64, 64, catalogue.num_questions + 1)
    return mlp(inputs, sizes, activation="relu")


def features(catalogue: Catalogue, now: Told) -> Array:
    """Entropies, squashed preferences of the user, history and |C|."""
    liking = links_lib.question_embedding(catalogue) @ conversation.query(
        catalogue, now.seen
    )
    liking = jnp.where(now.seen.accepted | now.seen.rejected, 0.0, jnp.tanh(liking))
    codes = learned.numbers(catalogue, now)
    return jnp.concatenate([now.seen.entropy, liking, codes])


def rule(catalogue: Catalogue, greedy: bool = True) -> Act:
    """The policy; slots of `learned.told`."""
    net = network(catalogue)

    def one(params: Params, now: Told, key: Key) -> Array:
        logits = net.apply(params, features(catalogue, now))
        where = jnp.append(now.seen.askable, True)
        if greedy:
            index = exploration.greedy(logits, where)
        else:
            index = jax.random.categorical(key, jnp.where(where, logits, -jnp.inf))
        slot = rules.slot_of(catalogue, now.seen, index)
        return jnp.where(index < catalogue.num_questions, slot, rules.RECOMMEND)

    def act(params: Params, now: Told, key: Key) -> Array:
        keys = jax.random.split(key, now.history.shape[0])
        return jax.vmap(lambda now, key: one(params, now, key))(now, keys)

    return act


def train(catalogue: Catalogue, seed: int, imitation: int, updates: int) -> Params:
    """Imitate maximum entropy, then REINFORCE with γ = 0.7.

    Args:
      catalogue: its interactions are learned from.
      seed: of everything.
      imitation: batches of 64 conversations to imitate.
      updates: batches of 64 conversations of its own.
    """
    net, sampled = network(catalogue), rule(catalogue, greedy=False)
    plain = rules.maximum_entropy(catalogue)
    adam = optax.adam(1e-3)

    def teacher(params: Params, now: Told, key: Key) -> Array:
        return plain(params, now.seen, key)

    def update(imitate: bool, carry: Any, key: Key) -> tuple[Any, Array]:
        params, moments = carry
        acting = teacher if imitate else sampled
        *record, reward = held(catalogue, acting, params, key)
        alive = record[-1]
        found = returns(reward)
        mean = jnp.sum(found * alive) / jnp.maximum(jnp.sum(alive), 1)
        weights = jnp.ones_like(found) if imitate else found - mean
        value, gradient = jax.value_and_grad(loss)(params, *record, weights)
        steps, moments = adam.update(gradient, moments)
        return (optax.apply_updates(params, steps), moments), value

    def loss(
        params: Params,
        inputs: Array,
        where: Array,
        index: Array,
        alive: Array,
        w: Array,
    ) -> Array:
        logits = jnp.where(where, net.apply(params, inputs), -1e9)
        every = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(every, index[..., None], axis=-1)[..., 0]
        return -jnp.sum(chosen * w * alive) / jnp.maximum(jnp.sum(alive), 1)

    init_key, first, second = jax.random.split(jax.random.key(seed), 3)
    params = net.init(init_key)
    carry = (params, adam.init(params))
    for imitate, number, key in ((True, imitation, first), (False, updates, second)):
        run = jax.jit(
            lambda carry, keys, imitate=imitate: jax.lax.scan(
                lambda c, k: update(imitate, c, k), carry, keys
            )[0]
        )
        carry = run(carry, jax.random.split(key, number))
    return carry[0]


def held(catalogue: Catalogue, acting: Act, params: Params, key: Key) -> PyTree:
    """64 conversations of a policy.

    Returns:
      `[ACTIONS, 64, ...]`: inputs, what could be done, what was done, whether the
      conversation still went on, and rewards.
    """
    env = learned.told(catalogue)
    begin_key, key = jax.random.split(key)
    start = jax.vmap(env.reset)(jax.random.split(begin_key, NUM_ENVS))

    def turn(carry: Any, key: Key) -> Any:
        state, now, over = carry
        slot = acting(params, now, key)
        ids = jnp.take_along_axis(now.seen.action_ids, slot[:, None], axis=1)[:, 0]
        index = ids - catalogue.num_items
        index = jnp.where(index < 0, catalogue.num_questions, index)
        state, new = jax.vmap(lambda s, a: env.step(s, a, None))(state, slot)
        inputs = jax.vmap(lambda now: features(catalogue, now))(now)
        where = jnp.pad(now.seen.askable, [(0, 0), (0, 1)], constant_values=True)
        reward = jnp.where(over, 0.0, new.reward)
        record = (inputs, where, index, ~over, reward)
        return (state, new.observation, over | new.terminated), record

    carry = (*start, jnp.zeros((NUM_ENVS,), bool))
    return jax.lax.scan(turn, carry, jax.random.split(key, ACTIONS))[1]


def returns(reward: Array) -> Array:
    """Discounted sums of what is still to come, `[T, B]`."""

    def back(later: Array, now: Array) -> tuple[Array, Array]:
        total = now + DISCOUNT * later
        return total, total

    return jax.lax.scan(back, jnp.zeros(reward.shape[1:]), reward, reverse=True)[1]
