"""A run of the past, read from its folder: its policies, and how good they are.

    run = saved.load("runs/hopper", method)
    run.policy(0)                                  # of the first seed, ready to act
    run.evaluate(env, num_episodes=100).returns    # [N, E]

The method must be made as it was for the training; `rlx eval` and `rlx play` make it
themselves where the folder says how (see `rlx.train.Recipe`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx import checkpoint, evaluate, learner
from rlx.record import RunFolder
from rlx.types import Env, Key, LearnerState, Method, Policy

MethodMaker = Callable[[Mapping[str, Any]], Method]


@dataclasses.dataclass(frozen=True)
class Saved:
    """The learners of all runs of a folder at one step."""

    make_method: MethodMaker
    """From hyper-parameters (name to number or traced scalar) to the method."""
    learners: LearnerState
    """Leaves lead with the axis of runs `[N, ...]`."""
    labels: list[dict[str, float]]
    """`[N]` seed and hyper-parameters of each run."""
    step: int
    """Environment steps of each run."""

    def policy(self, index: int) -> Policy:
        """The policy of one run."""
        state = jax.tree.map(lambda x: x[index], self.learners)
        return learner.policy(self.make_method(self.hyper(index)), state)

    def hyper(self, index: int) -> dict[str, Any]:
        """The hyper-parameters of one run, as the training had them."""
        return _hyper(self.labels[index])

    def evaluate(
        self,
        env: Env,
        *,
        num_episodes: int = 100,
        seed: int = 0,
        sample: bool = False,
        max_steps: int | None = None,
    ) -> evaluate.Episodes:
        """Runs fresh episodes of every policy.

        Args:
          env: where; its own time limit or `max_steps` ends the episodes.
          num_episodes: E, of each run.
          seed: of the evaluation's own randomness; the training's is another.
          sample: act with sampled actions instead of the deterministic policy.
          max_steps: episodes still alive then are cut.

        Returns:
          `Episodes` of NumPy arrays `[N, E]`.
        """

        @jax.jit
        def one(state: LearnerState, hyper: Any, key: Key) -> evaluate.Episodes:
            policy = learner.policy(self.make_method(hyper), state)
            return evaluate.episodes(
                env,
                policy,
                key,
                num_episodes=num_episodes,
                max_steps=max_steps,
                sample=sample,
            )

        # Training splits its keys from jax.random.key(seed); these are others.
        root = jax.random.fold_in(jax.random.key(seed), 0x65766C)
        found = []
        for index in range(len(self.labels)):
            state = jax.tree.map(lambda x, i=index: x[i], self.learners)
            key = jax.random.fold_in(root, index)
            found.append(jax.device_get(one(state, self.hyper(index), key)))
        return jax.tree.map(lambda *x: np.stack(x), *found)


def load(
    path: str | os.PathLike[str],
    method: Method | MethodMaker,
    step: int | None = None,
    num_envs: int | None = None,
) -> Saved:
    """Loads the learners of a run folder; replay buffers and the like stay on the disk.

    Args:
      path: the folder that `train.fit` made.
      method: as it was given to `train.fit`.
      step: of the checkpoint; the last unless given.
      num_envs: of the data source; the folder says it, unless an old rlx made it.

    Raises:
      RunFolderError: it is no run folder.
      CheckpointError: nothing has been saved, or another method was.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    labels = config["runs"]
    make_method = (lambda hyper: method) if isinstance(method, Method) else method
    first = make_method(_hyper(labels[0]))
    streams = num_envs or config.get("num_envs", 1)
    like = jax.eval_shape(
        jax.vmap(lambda key: learner.init(first, key, streams)),
        jax.random.split(jax.random.key(0), len(labels)),
    )
    if step is None:
        step = checkpoint.latest(folder.checkpoints)
    if step is None:
        raise checkpoint.CheckpointError(f"{path}: nothing has been saved yet")
    learners = checkpoint.load(folder.checkpoints, like, step, ".state.learner")
    return Saved(make_method, learners, labels, step)


def _hyper(label: Mapping[str, float]) -> dict[str, Any]:
    return {n: jnp.float32(value) for n, value in label.items() if n != "seed"}
