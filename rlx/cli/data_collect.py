"""`rlx data collect`: datasets by the policies of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlx import checkpoint, evaluate, learner, system
from rlx.cli import experiment as experiments
from rlx.cli import progress, saved
from rlx.cli.errors import UsageError
from rlx.cli.saved import Saved
from rlx.data import dataset as datasets
from rlx.data import dataset_files
from rlx.data.dataset import Dataset
from rlx.data.dataset_collect import clipped, collector, uniform_policy
from rlx.record import RunFolder
from rlx.types import Env, Key, Policy, PyTree

_HOW = {
    "random": "uniformly random actions",
    "medium": "the policy of one checkpoint, as it samples",
    "expert": "the policy of the run's expert checkpoint, as it samples",
    "medium-expert": "half by the medium policy, half by the expert, as they sample",
    "medium-replay": "collected anew in equal shares by every kept checkpoint up to "
    "medium, as they sample; not the replay buffer of the training",
}


class Actor(NamedTuple):
    """Who acts for a part of a dataset."""

    step: int | None
    """Of the checkpoint; None: the random policy."""
    score: float
    """Normalised."""


class Workshop:
    """The policies of one run, each compiled program made once for all of them."""

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments
        self.latest: Saved = saved.load(arguments.run, arguments.expert_step)
        count = len(self.latest.labels)
        if not 0 <= arguments.index < count:
            raise UsageError(
                f"--index {arguments.index}: {arguments.run} holds the runs 0 to "
                f"{count - 1}"
            )
        self.env: Env = self.latest.parts.env
        source = self.latest.parts.source.env
        # Evaluations need an end; the data must say whether the task has one.
        self.natural: Env = self.env if source is None else source
        # Training and evaluation split their keys from others.
        self.key = jax.random.fold_in(jax.random.key(arguments.seed), 0x64617461)
        self._mean_return = self._evaluator(self.policy, sample=False)
        of_random = self._evaluator(self.random, sample=True)
        self.random_return = of_random((), jax.random.fold_in(self.key, 0))
        self.expert_return = self.mean_return(self.latest.step)

    def random(self, state: PyTree) -> Policy:
        """Uniformly random actions; the state is nobody's."""
        del state
        return uniform_policy(self.env.spec.action)

    def policy(self, state: PyTree) -> Policy:
        """The policy of a learner's state."""
        hyper = self.latest.hyper(self.arguments.index)
        return learner.policy(self.latest.parts.make_method(hyper), state)

    def state(self, step: int) -> PyTree:
        """The learner's state in a checkpoint."""
        same = step == self.latest.step
        found = self.latest if same else saved.load(self.arguments.run, step)
        return jax.tree.map(lambda x: x[self.arguments.index], found.learners)

    def mean_return(self, step: int) -> float:
        """Mean return of a checkpoint's deterministic policy."""
        return self._mean_return(self.state(step), jax.random.fold_in(self.key, 1))

    def score(self, step: int) -> float:
        """Normalised score of a checkpoint."""
        return datasets.normalized_score(
            self.mean_return(step), self.random_return, self.expert_return
        )

    def _evaluator(
        self, make_policy: Callable[[PyTree], Policy], sample: bool
    ) -> Callable[[PyTree, Key], float]:
        @jax.jit
        def returns(state: PyTree, key: Key) -> jax.Array:
            policy = clipped(make_policy(state), self.env.spec.action)
            count = self.arguments.episodes
            found = evaluate.episodes(
                self.env, policy, key, num_episodes=count, sample=sample
            )
            return found.returns

        return lambda state, key: float(np.mean(np.asarray(returns(state, key))))


def collect(arguments: Any) -> Path:
    """Make a dataset with the policies of a run, and return its file.

    Raises:
      UsageError, DatasetError, RunFolderError, CheckpointError: says what to do.
    """
    kind = arguments.kind
    if arguments.medium_step is not None and not kind.startswith("medium"):
        raise UsageError(f"--medium-step means nothing for {kind}")
    name = experiments.from_folder(RunFolder.open(arguments.run)).env
    out = Path(arguments.out or f"{name.replace('/', '-')}-{kind}.h5")
    dataset_files.require_free(out)
    dataset_files.require_library()
    workshop = Workshop(arguments)
    actors = _actors(workshop, kind)
    data = _collect(workshop, actors)
    data = data.with_metadata(**_metadata(workshop, kind, actors, data))
    datasets.save(data, out)
    return out


def _actors(workshop: Workshop, kind: str) -> list[Actor]:
    expert = Actor(workshop.latest.step, 100.0)
    if not workshop.expert_return > workshop.random_return:
        raise UsageError(
            f"{workshop.arguments.run}: its expert, step {workshop.latest.step} with "
            f"the return {progress.number(workshop.expert_return)}, is not above random"
            f" actions with {progress.number(workshop.random_return)}: train longer, "
            "or name another with --expert-step"
        )
    if kind == "random":
        return [Actor(None, 0.0)]
    if kind == "expert":
        return [expert]
    tried = _up_to_medium(workshop)
    if kind == "medium-replay":
        return tried
    return [tried[-1], expert] if kind == "medium-expert" else [tried[-1]]


def _up_to_medium(workshop: Workshop) -> list[Actor]:
    """All kept checkpoints up to the medium one, which is the last of them."""
    arguments, tried = workshop.arguments, []
    folder = Path(arguments.run, "checkpoints")
    kept = [s for s in checkpoint.steps(folder) if s <= workshop.latest.step]
    named = arguments.medium_step
    if named is not None and named not in kept:
        raise UsageError(
            f"--medium-step {named}: {arguments.run} kept the steps "
            f"{', '.join(map(str, kept))} up to the expert"
        )
    low, high = arguments.band
    for step in kept:
        tried.append(Actor(step, workshop.score(step)))
        if step == named or (named is None and low <= tried[-1].score <= high):
            return tried
    listed = ", ".join(f"{actor.step}: {actor.score:.0f}" for actor in tried)
    raise UsageError(
        f"{arguments.run}: no kept checkpoint has a normalised score in {low:g} to "
        f"{high:g}, they have {listed}: name one with --medium-step, widen --band, or "
        "train with --keep 50 --evaluations 50"
    )


def _collect(workshop: Workshop, actors: list[Actor]) -> Dataset:
    share, limit = _share(workshop, actors), workshop.natural.spec.time_limit
    count = workshop.arguments.num_envs
    if count is None:
        count = min(16, max(1, share // (10 * (limit or share))))
    make = workshop.random if actors[0].step is None else workshop.policy
    act = collector(workshop.natural, make, num_steps=share, num_envs=count)
    parts = []
    for index, actor in enumerate(actors):
        state = () if actor.step is None else workshop.state(actor.step)
        key = jax.random.fold_in(jax.random.fold_in(workshop.key, 2), index)
        parts.append(act(state, key))
    return datasets.concatenate(parts, parts[0].metadata, workshop.arguments.steps)


def _share(workshop: Workshop, actors: list[Actor]) -> int:
    steps = workshop.arguments.steps
    if steps < len(actors):
        raise UsageError(f"--steps {steps}: {len(actors)} policies act, one step each")
    return -(-steps // len(actors))


def _metadata(
    workshop: Workshop, kind: str, actors: list[Actor], data: Dataset
) -> dict[str, Any]:
    arguments, kept = workshop.arguments, workshop.latest.experiment
    share = _share(workshop, actors)
    rows = [
        max(0, min(share, data.num_steps - index * share))
        for index in range(len(actors))
    ]
    versions = {n: text for n, text in system.versions().items() if text is not None}
    return {
        "env_options": dict(kept.env_options),
        "kind": kind,
        "how": f"{_HOW[kind]}; real actions clipped to their bounds",
        "random_return": workshop.random_return,
        "expert_return": workshop.expert_return,
        "versions": versions,
        "details": {
            "run": Path(arguments.run).resolve().name,
            "method": kept.method,
            "label": workshop.latest.labels[arguments.index],
            "expert_step": workshop.latest.step,
            "episodes_per_score": arguments.episodes,
            "seed": arguments.seed,
            "actors": [
                {"checkpoint": actor.step, "score": actor.score, "steps": count}
                for actor, count in zip(actors, rows, strict=True)
            ],
        },
    }
