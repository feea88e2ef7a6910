"""Offline data: a recorded dataset on the device, sampled uniformly.

Fu et al. 2020, https://arxiv.org/abs/2004.07219 (D4RL). `load` reads rlx's own files
(`rlx data collect` makes them), D4RL's, Minari's and OGBench's. `dataset_files` has the
layout; `dataset_readers` says what each foreign file lacks, `dataset_checks` what is
refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.data import ring as ring_lib
from rlx.data.dataset_checks import Finding as Finding
from rlx.data.dataset_checks import report as report
from rlx.data.dataset_checks import require as require
from rlx.data.dataset_files import load as load
from rlx.data.dataset_files import save as save
from rlx.data.dataset_record import Dataset as Dataset
from rlx.data.dataset_record import DatasetError as DatasetError
from rlx.data.dataset_record import Metadata as Metadata
from rlx.data.dataset_record import concatenate as concatenate
from rlx.data.dataset_record import normalized_score as normalized_score
from rlx.ops import normalization, returns
from rlx.types import (
    DataSource,
    Env,
    Key,
    Metrics,
    Policy,
    PyTree,
    Transition,
)


def dataset(
    env: Env,
    *,
    path: str = "",
    batch_size: int = 256,
    num_minibatches: int = 1,
    n_step: int = 1,
    gamma: float = 0.99,
) -> DataSource:
    """The dataset in a file, checked against the environment that evaluates.

    What `rlx train METHOD --env hopper --source dataset --source-set path=FILE` uses.

    Args:
      env: not stepped: its spec must fit the data, and evaluations run on it.
      path: a file that `load` reads.
      batch_size: as for `sample`, like all that follows.
      num_minibatches: see `sample`.
      n_step: see `sample`.
      gamma: see `sample`.

    Raises:
      DatasetError: no path, or the data are refused.
      ValueError: a size is not positive.
    """
    return sample(
        load_for(env, path),
        env=env,
        batch_size=batch_size,
        num_minibatches=num_minibatches,
        n_step=n_step,
        gamma=gamma,
    )


def load_for(env: Env, path: str) -> Dataset:
    """The dataset in a file, checked against the environment.

    Raises:
      DatasetError: no path, or the data are refused.
    """
    if not path:
        raise DatasetError("which dataset? give the source a path: path=hopper.h5")
    return load(path, spec=env.spec)


def sample(
    data: Dataset,
    *,
    batch_size: int = 256,
    num_minibatches: int = 1,
    n_step: int = 1,
    gamma: float = 0.99,
    env: Env | None = None,
) -> DataSource:
    """Draws transitions uniformly, with replacement, on the device.

    One batch is a `Transition` with leading axes `[num_minibatches, batch_size]`. It
    takes no environment step: `train.fit` counts batches.

    The data are in `DataSource.arrays`: `train.fit` keeps one copy for all its runs,
    outside of the state, so that checkpoints do not hold it. Who puts `next` under a
    `jit` of their own should pass them in: `jit(lambda arrays, state, key:
    source.over(arrays).next(state, policy, key))`. What a compiled function closes over
    becomes a constant of its program, and XLA takes a quarter of a minute for 80 MB.

    Args:
      data: host arrays; `extras` are drawn along.
      batch_size: transitions in a minibatch.
      num_minibatches: minibatches in a batch.
      n_step: steps that a transition spans, within its episode; see
        `rlx.data.ring.sample`.
      gamma: γ, which must be the method's; used only where `n_step` > 1.
      env: where evaluations run.

    Raises:
      ValueError: a size is not positive.
    """
    sizes = {
        "batch_size": batch_size,
        "num_minibatches": num_minibatches,
        "n_step": n_step,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")

    def over(ring: ring_lib.Ring) -> DataSource:
        def init(key: Key, policy: Policy) -> PyTree:
            del key, policy
            return ()

        def next_batch(
            state: PyTree, policy: Policy, key: Key
        ) -> tuple[PyTree, Transition, Metrics]:
            del policy
            shape = (num_minibatches, batch_size)
            return state, ring_lib.sample(ring, key, shape, n_step, gamma), {}

        return DataSource(init=init, next=next_batch, env=env, arrays=ring, over=over)

    return over(_as_ring(data))


def _as_ring(data: Dataset) -> ring_lib.Ring:
    """A full ring of one stream: the dataset's borders keep n-step sums inside."""
    rows = jax.tree.map(lambda x: jnp.asarray(x)[:, None], data.transitions)
    return ring_lib.Ring(
        rows=rows,
        cursor=jnp.zeros((), jnp.int32),
        size=jnp.asarray(data.num_steps, jnp.int32),
    )


# --------------------------------------------------------------------------- helpers


def observation_statistics(data: Dataset) -> normalization.RunningStatistics:
    """Mean and variance of the observations, for `rlx.ops.normalization.normalize`.

    A learner that keeps them in its `stats` acts online with the same normalisation.
    """
    observation = jnp.asarray(data.transitions.observation, jnp.float32)
    stats = normalization.init(jax.ShapeDtypeStruct(observation.shape[1:], jnp.float32))
    return jax.jit(normalization.update)(stats, observation)


def normalize_observations(
    data: Dataset,
    stats: normalization.RunningStatistics,
    clip: float | None = 10.0,
) -> Dataset:
    """Both observations of every transition, normalised; see `normalization`."""

    @jax.jit
    def scaled(x: Any) -> Any:
        return normalization.normalize(stats, x, clip)

    kept = data.transitions
    pair = (kept.observation, kept.next_observation)
    one, two = (np.asarray(scaled(jnp.asarray(x, jnp.float32))) for x in pair)
    changed = kept.replace(observation=one, next_observation=two)
    return dataclasses.replace(data, transitions=changed)


def with_returns_to_go(data: Dataset, gamma: float) -> Dataset:
    """Adds `extras["return_to_go"]`: the discounted return from each step on.

        Rₜ = rₜ + γ Rₜ₊₁   within an episode

    A cut episode's sum ends with its last recorded step; nothing is bootstrapped.

    Args:
      data: episodes in the order of time.
      gamma: γ in [0, 1].
    """
    kept = data.transitions
    go_on = 1.0 - jnp.asarray(data.ended, jnp.float32)
    value = jax.jit(returns.linear_recurrence)(
        jnp.asarray(kept.reward, jnp.float32), gamma * go_on, jnp.zeros(())
    )
    extras = {**kept.extras, "return_to_go": np.asarray(value)}
    return dataclasses.replace(data, transitions=kept.replace(extras=extras))
