"""Brax's PPO on the same task, batch, networks and passes; one seed.

`brax.training` trains what looks like one of Brax's environments, so the task comes in
their clothes; its own wrappers end and restart the episodes (always from the states
they first began in, where rlx draws new ones). Prints one line of JSON, as rlx does.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs import base
from brax.training.agents.ppo import networks, train

from experiments.benchmarks.contestants.rlx_accelerator import peak_mib
from experiments.benchmarks.contestants.setting import add_accelerator_options
from rlx import system
from rlx.ops import distributions
from rlx.types import Box, Env

LIMIT = {"probe/pendulum": 200}
"""Steps of an episode where they are not MuJoCo's 1,000."""


class Clothed(base.Env):
    """An rlx environment without time limit as one of Brax's; actions in [-1, 1]."""

    def __init__(self, env: Env):
        self._env = env

    def reset(self, key: jax.Array) -> base.State:
        """Begins an episode; the key for its steps travels in `info`."""
        first, later = jax.random.split(jax.random.wrap_key_data(key))
        state, observation = self._env.reset(first)
        zero = jnp.zeros(())
        info = {"key": jax.random.key_data(later)}
        return base.State(state, observation, zero, zero, {}, info)

    def step(self, state: base.State, action: jax.Array) -> base.State:
        """Takes one step."""
        now, later = jax.random.split(jax.random.wrap_key_data(state.info["key"]))
        box = self._env.spec.action
        assert isinstance(box, Box)
        action = distributions.rescale_to_box(action, box.minimum, box.maximum)
        inner, new = self._env.step(state.pipeline_state, action, now)
        return state.replace(
            pipeline_state=inner,
            obs=new.observation,
            reward=new.reward,
            done=new.terminated.astype(jnp.float32),
            info={**state.info, "key": jax.random.key_data(later)},
        )

    @property
    def observation_size(self) -> int:
        """Features."""
        return self._env.spec.observation.shape[0]

    @property
    def action_size(self) -> int:
        """Dimensions."""
        return self._env.spec.action.shape[0]

    @property
    def backend(self) -> str:
        """What steps it."""
        return "rlx"


def replicate(x: Any, devices: Sequence[Any]) -> Any:
    """What JAX no longer has and Brax 0.14.2 calls: one copy for each device."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), x)


def main() -> None:
    """Trains and tells how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_accelerator_options(parser)
    options = parser.parse_args()

    import envs

    engine = {"engine": options.engine} if options.engine else {}
    env = Clothed(envs.make(options.env, time_limit=None, **engine))
    rows: list[tuple[int, dict[str, Any]]] = []

    jax.device_put_replicated = replicate
    units = (64, 64)
    train.train(
        env,
        num_timesteps=options.steps,
        num_evals=options.evaluations + 1,
        num_eval_envs=options.episodes,
        deterministic_eval=True,
        episode_length=LIMIT.get(options.env, 1000),
        num_envs=options.num_envs,
        unroll_length=options.length,
        num_minibatches=options.num_minibatches,
        batch_size=options.num_envs // options.num_minibatches,
        num_updates_per_batch=options.num_epochs,
        learning_rate=3e-4,
        discounting=0.99,
        entropy_cost=0.0,
        clipping_epsilon=0.2,
        max_grad_norm=0.5,
        normalize_observations=bool(options.normalize),
        network_factory=functools.partial(
            networks.make_ppo_networks,
            policy_hidden_layer_sizes=units,
            value_hidden_layer_sizes=units,
        ),
        progress_fn=lambda step, metrics: rows.append((step, dict(metrics))),
    )
    print(json.dumps(answer(rows)))


def answer(rows: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """What rlx prints too; the usual interval is one without compilation."""
    whole = [row["training/walltime"] for _, row in rows[1:]]
    seconds = np.diff([0.0, *whole])
    usual = float(np.median(seconds))
    span = rows[1][0]
    return {
        "compile_seconds": float(seconds.sum() - usual * len(seconds)),
        "steps_per_second": span / usual,
        "seconds_of_training": [usual * i for i in range(len(rows))],
        "returns": [[float(row["eval/episode_reward"])] for _, row in rows],
        "program_mib": None,
        "peak_mib": peak_mib(),
        "machine": system.describe(),
    }


if __name__ == "__main__":
    main()
