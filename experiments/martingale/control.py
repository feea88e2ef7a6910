"""Control by martingale conditions: policy gradient and q-learning on the ergodic LQ.

Jia & Zhou, "Policy Gradient and Actor-Critic Learning in Continuous Time and Space",
JMLR 23 (2022), https://arxiv.org/abs/2111.11232, and "q-Learning in Continuous Time",
JMLR 24 (2023), https://arxiv.org/abs/2207.00713.

`rlx.methods.martingale_control` in rlx's own loop. The policy gradient acts with the
policy that it learns; q-learning watches another.
"""

from __future__ import annotations

import functools
import time as clock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import diffusion as df
from experiments.martingale.stochastic import ergodic_family
from rlx import loop
from rlx.data.rollout import rollout
from rlx.methods import martingale_control
from rlx.types import Array, Key

TEMPERATURE = 0.1
BEHAVIOUR = {"policy_gradient": None, "q_learning": (0.0, -0.6)}
"""Who acts: the learned policy itself, or another, N(slope x + offset, ·)."""
BEHAVIOUR_VARIANCE = 0.25
STEP_SIZE = 0.01
LENGTH = 25
"""Steps of a batch; streams go on where the last batch ended."""
RATES = {"learning_rate": 0.2, "average_learning_rate": 0.1}
ACTOR_RATES = {"policy_gradient": 0.04, "q_learning": 0.04 / TEMPERATURE}
"""The actor's test function is γ∇log π in q-learning: its rate makes up for γ."""


def _behaviour(name: str):
    if BEHAVIOUR[name] is None:
        return None
    slope, offset = BEHAVIOUR[name]

    def act(observation: Array, key: Key):
        noise = jax.random.normal(key, observation.shape, observation.dtype)
        return slope * observation + offset + BEHAVIOUR_VARIANCE**0.5 * noise, {}

    return act


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train(name: str, iterations: int, streams: int, keys: Array):
    # No stream ends within the run: the problem is ergodic.
    duration = max(2 * iterations * LENGTH, 1) * STEP_SIZE
    env = df.make(df.ergodic_lq(), STEP_SIZE, duration=duration)
    config = martingale_control.Config(
        name,
        discount_rate=0.0,
        temperature=TEMPERATURE,
        average_reward=True,
        actor_learning_rate=ACTOR_RATES[name],
        # Constant for the first third, then 1/n: the critic settles first.
        constant_steps=iterations / 3,
        initial_variance=0.2,
        **RATES,
    )
    method = martingale_control.make(
        env.spec, config, ergodic_family(), behaviour=_behaviour(name)
    )
    source = rollout(env, num_envs=streams, length=LENGTH)

    def one(key: Key):
        def body(state, _):
            state, _ = loop.step(method, source, state)
            params = state.learner.params
            actor = [jnp.ravel(x) for x in _in_order(params["actor"])]
            return state, params | {"actor": jnp.concatenate(actor)}

        state = loop.init(method, source, key)
        trail = jax.lax.scan(body, state, None, length=iterations)[1]
        return jax.tree.map(lambda x: x[:: max(iterations // 200, 1)], trail), (
            jax.tree.map(lambda x: x[-iterations // 4 :].mean(0), trail)
        )

    return jax.lax.map(one, keys)


def _in_order(actor: dict[str, Array]) -> tuple[Array, Array, Array]:
    return actor["weights"], actor["offset"], actor["log_variance"]


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
        "rates": RATES | {"actor_learning_rate": ACTOR_RATES},
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
            "critic": final["value"].mean(0).tolist(),
            "V": float(final["average_reward"].mean()),
            "true_reward": float(np.mean(rewards)),
            "worst_reward": float(np.min(rewards)),
            "gap_closed": float((np.mean(rewards) - start) / (best - start)),
            "trail": trail["actor"].mean(0).tolist(),
            "seconds": clock.perf_counter() - begin,
        }
    return result
