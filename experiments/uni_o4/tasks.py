"""The tasks and datasets of this page, and the budget of every arm."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from rlx.methods import uni_o4
from rlx.offline_to_online import Budget
from rlx.types import Array

DATA = Path("runs/uni_o4")
"""Where `experiments.uni_o4.data` puts runs and datasets."""
KINDS = ("medium", "medium-replay", "medium-expert")
TRANSITIONS = 100_000

CONFIG = uni_o4.Config(
    num_members=4,
    num_models=5,
    num_elites=4,
    hidden_sizes=(64, 64),
    model_hidden_sizes=(128, 128),
    actor_learning_rate=3e-4,
    critic_learning_rate=1e-3,
    tau=0.02,
    improvement_learning_rate=1e-4,
    num_minibatches=100,
    evaluation_starts=256,
    horizon=100,
)
"""One for all tasks and sets; sizes for two processor cores, the rest the authors'.

The critics take larger steps and their targets follow faster than the authors' (1e-4,
0.005), who take 2,000,000 steps: see `experiments.uni_o4.values`.
"""
BUDGET = Budget(foundation_steps=15_000, improvement_steps=2_000, online_steps=200_000)


def is_hopper_down(observation: Array) -> Array:
    """Hopper's end as the task defines it, of `[K, 11]` observations."""
    height, angle = observation[..., 0], observation[..., 1]
    bounded = jnp.all(jnp.abs(observation[..., 1:]) < 100.0, axis=-1)
    return ~(bounded & (height > 0.7) & (jnp.abs(angle) < 0.2))


def is_walker_down(observation: Array) -> Array:
    """Walker2d's end as the task defines it, of `[K, 17]` observations."""
    height, angle = observation[..., 0], observation[..., 1]
    return ~((height > 0.8) & (height < 2.0) & (jnp.abs(angle) < 1.0))


TASKS = {"hopper": is_hopper_down, "walker2d": is_walker_down, "half_cheetah": None}
"""Name -> what ends an episode, as a model's rollouts must know it."""


def file_of(task: str, kind: str) -> Path:
    """The dataset of a task."""
    return DATA / f"{task}-{kind}.h5"
