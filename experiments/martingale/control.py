"""Control by martingale conditions: policy gradient and q-learning on the ergodic LQ.

Jia & Zhou, "Policy Gradient and Actor-Critic Learning in Continuous Time and Space",
JMLR 23 (2022), https://arxiv.org/abs/2111.11232, and "q-Learning in Continuous Time",
JMLR 24 (2023), https://arxiv.org/abs/2207.00713.

dM = dJ + (r - γ log π - V) dt is a martingale's increment at the value of π. The policy
gradient is E ∫ ∇log π dM: the same orthogonality with the score as its test function.
q-learning asks that dJ + (r - q - V) dt be one under *any* behaviour, with q normalised
so that exp(q/γ) integrates to 1; then exp(q/γ) is the optimal policy.
"""

from __future__ import annotations

import functools
import math
import time as clock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import diffusion as df
from rlx.ops import martingale
from rlx.types import Array, Key

TEMPERATURE = 0.1
BEHAVIOUR = {"policy_gradient": None, "q_learning": (0.0, -0.6)}
"""Who acts: the learned policy itself, or another, N(slope x + offset, ·)."""
BEHAVIOUR_VARIANCE = 0.25
STEP_SIZE = 0.01
LENGTH = 25
"""Steps of a batch; streams go on where the last batch ended."""


def log_policy(actor: Array, state: Array, action: Array) -> Array:
    """Log N(action; f₁x + f₂, e^{f₃}), elementwise."""
    gap = action - actor[0] * state - actor[1]
    return -0.5 * (gap**2 * jnp.exp(-actor[2]) + actor[2] + math.log(2 * math.pi))


def value(critic: Array, state: Array) -> Array:
    """J = θ₀x²/2 + θ₁x, elementwise."""
    return critic[0] * state**2 / 2 + critic[1] * state


def conditions(params: dict[str, Array], batch: dict[str, Array]) -> Array:
    """One surrogate loss whose gradients are minus all three orthogonality conditions.

    ξ = ∇J for the critic, 1 for V, and ∇q = γ∇log π for the actor: exp(q/γ) = π makes
    policy gradient and on-policy q-learning the same up to the factor γ, while the
    q-function alone may be learned from another's actions.
    """
    constant = jax.lax.stop_gradient
    state, following = batch["state"], batch["following"]
    log_prob = log_policy(params["actor"], state, batch["action"])
    reward = batch["reward"] - TEMPERATURE * constant(log_prob)
    duration = jnp.full_like(reward, STEP_SIZE)
    cut = jnp.zeros(reward.shape, bool).at[-1].set(True)
    steps = martingale.Steps(reward * STEP_SIZE, jnp.ones_like(reward), duration, cut)
    now = value(params["critic"], state)
    increment = martingale.increments(
        constant(now),
        constant(value(params["critic"], following)),
        steps,
        average_reward=constant(params["average"]),
    )
    pairs = (now, log_prob, jnp.broadcast_to(params["average"], now.shape))
    losses = [martingale.orthogonality_loss(x, increment) for x in pairs]
    return sum(jnp.mean(jnp.sum(x, 0)) for x in losses)


def _simulate(problem, policy, state: Array, key: Key):
    def body(state: Array, key: Key):
        act_key, noise_key = jax.random.split(key)
        slope, offset, log_variance = policy
        noise = jax.random.normal(act_key, state.shape)
        action = slope * state + offset + jnp.exp(log_variance / 2) * noise
        shock = jnp.sqrt(STEP_SIZE) * jax.random.normal(noise_key, state.shape)
        reward = jax.vmap(lambda x, u: problem.reward(0.0, x[None], u[None]))
        following = state - state * STEP_SIZE + action * shock
        row = {"state": state, "following": following, "action": action}
        return following, row | {"reward": reward(state, action)}

    return jax.lax.scan(body, state, jax.random.split(key, LENGTH))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(name: str, iterations: int, streams: int, keys: Array):
    problem = df.ergodic_lq()
    rates = {"critic": 1.0, "actor": 0.2, "average": 0.5}
    behaviour = BEHAVIOUR[name]

    def one(key: Key):
        params = {
            "critic": jnp.zeros(2),
            "actor": jnp.array([0.0, 0.0, math.log(0.2)]),
            "average": jnp.zeros(()),
        }

        def body(carry, key: Key):
            params, state, index = carry
            policy = params["actor"]
            if behaviour is not None:
                policy = jnp.array([*behaviour, math.log(BEHAVIOUR_VARIANCE)])
            state, batch = _simulate(problem, policy, state, key)
            # Squares of x make the test functions heavy-tailed: clip rare batches.
            gradient = jax.grad(conditions)(params, batch)
            gradient = jax.tree.map(lambda g: jnp.clip(g, -1.0, 1.0), gradient)
            # Constant for the first third, then 1/n: the critic settles first.
            decay = jnp.minimum(1.0, iterations / 3 / (index + 1.0))
            params = {
                k: params[k]
                - decay * rates[k] * gradient[k] / (LENGTH * STEP_SIZE) * 0.05
                for k in params
            }
            return (params, state, index + 1), params

        start = (params, jnp.zeros(streams), jnp.zeros(()))
        trail = jax.lax.scan(body, start, jax.random.split(key, iterations))[1]
        return jax.tree.map(lambda x: x[:: max(iterations // 200, 1)], trail), (
            jax.tree.map(lambda x: x[-iterations // 4 :].mean(0), trail)
        )

    return jax.lax.map(one, keys)


def control_table(iterations: int, streams: int, seeds: int) -> dict[str, Any]:
    """Learned policies and their exact average rewards, against the known optimum."""
    slope, offset, variance = df.ergodic_optimum(TEMPERATURE)
    best = df.ergodic_value(slope, offset, variance, TEMPERATURE).average
    start = df.ergodic_value(0.0, 0.0, 0.2, TEMPERATURE).average
    result = {
        "optimum": [slope, offset, variance],
        "optimal_reward": best,
        "start_reward": start,
        "iterations": iterations,
        "streams": streams,
        "seeds": seeds,
        "step_size": STEP_SIZE,
        "behaviour_off_policy": [*BEHAVIOUR["q_learning"], BEHAVIOUR_VARIANCE],
    }
    for name in BEHAVIOUR:
        begin = clock.perf_counter()
        keys = jax.random.split(jax.random.key(6), seeds)
        trail, final = jax.tree.map(np.asarray, _train(name, iterations, streams, keys))
        actor = final["actor"]
        found = np.stack([actor[:, 0], actor[:, 1], np.exp(actor[:, 2])], 1)
        rewards = [df.ergodic_value(*row, TEMPERATURE).average for row in found]
        result[name] = {
            "policy": found.mean(0).tolist(),
            "policy_spread": found.std(0, ddof=1).tolist(),
            "critic": final["critic"].mean(0).tolist(),
            "V": float(final["average"].mean()),
            "true_reward": float(np.mean(rewards)),
            "worst_reward": float(np.min(rewards)),
            "gap_closed": float((np.mean(rewards) - start) / (best - start)),
            "trail": trail["actor"].mean(0).tolist(),
            "seconds": clock.perf_counter() - begin,
        }
    return result
