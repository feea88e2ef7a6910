"""A language whose best policy is known exactly: words that form a Markov chain.

A prompt is a word x; a response has T words. The reference says y_t with probability
P[y_{t−1}, y_t], y_0 = x, and the reward is a sum over neighbours, Σ_t R_x[y_{t−1},
y_t]. So the optimum of E[r − β log(π / π_ref)] among *all* policies over sequences
follows from T steps backwards, with log Z after the last word 0:

    log Z_t[v] = log Σ_w P[v, w] e^{R_x[v, w] / β} Z_{t+1}[w],   J* = β E_x log Z_1[x]
    π*_t(w | v, x) = P[v, w] e^{R_x[v, w] / β} Z_{t+1}[w] / Z_t[v]

Policies here are log-probabilities `[X, T, V, V]` (prompt, step, word before, word).
Words and prompts are tokens as they are, so that any language model over V tokens can
learn in this world: `prompts`, `sequences` and `score` connect it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.data.prompts import Prompts
from rlx.ops.sequences import Sequences, joined
from rlx.types import Array, Key


@struct.dataclass
class Chain:
    """The world: the first X of V words are its prompts, equally likely."""

    reference: Array
    """`[V, V]` log P."""
    reward: Array
    """`[X, V, V]` R."""
    length: int = struct.field(pytree_node=False)
    """T, words in a response."""


class Value(NamedTuple):
    """What a policy is worth, exactly; averages over prompts."""

    reward: Array
    """E r."""
    kl: Array
    """KL(π ‖ π_ref), nats per response."""


def random(
    key: Key,
    *,
    num_words: int = 16,
    length: int = 12,
    num_prompts: int = 8,
    scale: float = 0.3,
) -> Chain:
    """A reference with standard normal logits; rewards normal with deviation `scale`.

    Raises:
      ValueError: more prompts than words, or a size is not positive.
    """
    if not 1 <= num_prompts <= num_words or length < 1:
        raise ValueError(
            f"num_prompts={num_prompts} must lie in 1 ... num_words={num_words}, and "
            f"length={length} be positive"
        )
    reference_key, reward_key = jax.random.split(key)
    logits = jax.random.normal(reference_key, (num_words, num_words))
    shape = (num_prompts, num_words, num_words)
    reward = scale * jax.random.normal(reward_key, shape)
    return Chain(jax.nn.log_softmax(logits, axis=-1), reward, length)


def reference_policy(chain: Chain) -> Array:
    """Log π_ref as a policy, `[X, T, V, V]`."""
    prompts, words = chain.reward.shape[:2]
    shape = (prompts, chain.length, words, words)
    return jnp.broadcast_to(chain.reference[None, None], shape)


def optimum(chain: Chain, beta: float | Array) -> tuple[Array, Array]:
    """Log π* `[X, T, V, V]` and J*, a scalar."""
    step = chain.reference[None] + chain.reward / beta

    def back(following: Array, _: None) -> tuple[Array, Array]:
        joint = step + following[:, None, :]
        total = jax.nn.logsumexp(joint, axis=-1)
        return total, joint - total[..., None]

    prompts, words = chain.reward.shape[:2]
    start = jnp.zeros((prompts, words), step.dtype)
    total, policy = jax.lax.scan(back, start, length=chain.length)
    first = total[jnp.arange(prompts), jnp.arange(prompts)]
    return jnp.swapaxes(policy[::-1], 0, 1), beta * jnp.mean(first)


def value(chain: Chain, policy: Array) -> Value:
    """The exact reward and divergence of a policy, by T steps forwards.

    Args:
      chain: the world.
      policy: `[X, T, V, V]` log-probabilities.

    Raises:
      AssertionError: the policy has another shape.
    """
    prompts, words = chain.reward.shape[:2]
    chex.assert_shape(policy, (prompts, chain.length, words, words))

    def forward(place: Array, log_prob: Array) -> tuple[Array, tuple[Array, Array]]:
        joint = place[..., None] * jnp.exp(log_prob)
        apart = jnp.where(joint > 0, log_prob - chain.reference[None], 0.0)
        reward = jnp.sum(joint * chain.reward, axis=(-2, -1))
        return jnp.sum(joint, axis=1), (reward, jnp.sum(joint * apart, axis=(-2, -1)))

    start = jnp.eye(words)[:prompts]
    _, (reward, kl) = jax.lax.scan(forward, start, jnp.swapaxes(policy, 0, 1))
    return Value(jnp.mean(jnp.sum(reward, 0)), jnp.mean(jnp.sum(kl, 0)))


def gap(chain: Chain, policy: Array, beta: float | Array) -> Array:
    """J* − J(π) >= 0, a scalar."""
    found = value(chain, policy)
    return optimum(chain, beta)[1] - (found.reward - beta * found.kl)


def sample(key: Key, policy: Array, prompt: Array) -> Array:
    """Responses `int32[B, T]` of a policy `[X, T, V, V]` to prompts `int[B]`."""
    chex.assert_rank([policy, prompt], [4, 1])

    def say(word: Array, inputs: tuple[Array, Key]) -> tuple[Array, Array]:
        log_prob, key = inputs
        word = jax.random.categorical(key, log_prob[prompt, word]).astype(jnp.int32)
        return word, word

    keys = jax.random.split(key, policy.shape[1])
    steps = (jnp.swapaxes(policy, 0, 1), keys)
    return jax.lax.scan(say, prompt.astype(jnp.int32), steps)[1].T


def reward(chain: Chain, prompt: Array, words: Array) -> Array:
    """The reward of responses `int[B, T]` to prompts `int[B]`, `[B]`."""
    before = _before(prompt, words)
    return jnp.sum(chain.reward[prompt[:, None], before, words], axis=-1)


def log_prob(policy: Array, prompt: Array, words: Array) -> Array:
    """Log π of responses `int[B, T]` to prompts `int[B]`, `[B]`."""
    steps = jnp.arange(words.shape[1])[None]
    found = policy[prompt[:, None], steps, _before(prompt, words), words]
    return jnp.sum(found, axis=-1)


def _before(prompt: Array, words: Array) -> Array:
    chex.assert_rank([prompt, words], [1, 2])
    return jnp.concatenate([prompt[:, None], words[:, :-1]], axis=1)


def prompts(chain: Chain) -> Prompts:
    """All prompts of the world, rows of one token."""
    tokens = jnp.arange(chain.reward.shape[0], dtype=jnp.int32)[:, None]
    return Prompts(tokens, jnp.ones(tokens.shape, bool))


def sequences(prompt: Array, words: Array) -> Sequences:
    """Rows `[B, 1 + T]` of prompts `int[B]` and responses `int[B, T]`."""
    asked = prompt[:, None].astype(jnp.int32)
    there = jnp.ones(words.shape, bool)
    return joined(asked, jnp.ones(asked.shape, bool), words, there)


def score(chain: Chain) -> Callable[[Sequences], Array]:
    """The reward as `rlx.data.prompts.respond` wants it: of rows `[B, 1 + T]`."""

    def go(rows: Sequences) -> Array:
        return reward(chain, rows.tokens[:, 0], rows.tokens[:, 1:])

    return go
