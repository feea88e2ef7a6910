"""Offline and online data together: a fixed share of every minibatch is recorded.

Ball, Smith, Kostrikov and Levine 2023, https://arxiv.org/abs/2302.02948 (RLPD): half of
each minibatch comes from the dataset, half from what the run itself has met. For
methods that go on online from what they learned offline, such as IQL and AWAC.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx.data import dataset as datasets
from rlx.data import replay as replay_lib
from rlx.data import ring as ring_lib
from rlx.data.dataset import Dataset
from rlx.types import DataSource, Env, Key, Metrics, Policy, Transition


def mixed(  # noqa: PLR0913 (the front door: everything is given by name)
    env: Env,
    data: Dataset | None = None,
    *,
    path: str = "",
    share: float = 0.5,
    num_envs: int = 1,
    length: int = 1,
    batch_size: int = 256,
    num_minibatches: int = 1,
    capacity: int = 1_000_000,
    warmup: int = 0,
) -> DataSource:
    """Steps the environments and samples from the ring and from a dataset.

    A batch is a `Transition` with leading axes `[num_minibatches, batch_size]`: the
    first `round(share * batch_size)` transitions of each minibatch are drawn uniformly
    from the dataset, the rest uniformly from all that the run has met so far.

    The dataset lies in `DataSource.arrays`, once for all runs and outside of their
    checkpoints, see `rlx.data.dataset.sample`.

    Args:
      env: one environment; it is vmapped here.
      data: must fit the environment; None: that of `path`.
      path: a file that `rlx.data.dataset.load` reads, where no data are given.
      share: of the dataset in each minibatch, in [0, 1].
      num_envs: environments stepped together.
      length: steps per environment and batch.
      batch_size: transitions in a minibatch.
      num_minibatches: minibatches in a batch.
      capacity: transitions remembered of the run's own, over all environments.
      warmup: environment steps with uniformly random actions before the first batch; 0
        where a policy that can act already goes on.

    Raises:
      ValueError: the share is outside [0, 1], or as `rlx.data.replay.replay`.
      DatasetError: neither data nor a path, or data that do not fit the environment.
    """
    replay_lib.require_positive(batch_size=batch_size, num_minibatches=num_minibatches)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    if data is None:
        data = datasets.load_for(env, path)
    else:
        datasets.require(data, "the dataset", env.spec)
    collector = replay_lib.make_collector(
        env, num_envs=num_envs, length=length, capacity=capacity, warmup=warmup
    )
    recorded = round(share * batch_size)
    # A run's own transitions carry no extras, so neither do the recorded ones.
    rows = datasets.sample(data, env=env).arrays
    rows = rows.replace(rows=rows.rows.replace(extras={}))

    def over(dataset: ring_lib.Ring) -> DataSource:
        def next_batch(
            state: replay_lib.ReplayState, policy: Policy, key: Key
        ) -> tuple[replay_lib.ReplayState, Transition, Metrics]:
            act_key, old_key, new_key = jax.random.split(key, 3)
            state, metrics = collector.collect(state, policy, act_key)
            old = ring_lib.sample(dataset, old_key, (num_minibatches, recorded))
            fresh = (num_minibatches, batch_size - recorded)
            new = ring_lib.sample(state.ring, new_key, fresh)
            both = jax.tree.map(
                lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], axis=1), old, new
            )
            return state, both, metrics

        return DataSource(
            init=collector.init,
            next=next_batch,
            steps_per_batch=collector.steps,
            num_envs=num_envs,
            env=env,
            arrays=dataset,
            over=over,
        )

    return over(rows)
