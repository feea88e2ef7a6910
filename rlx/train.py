"""Training: the pure loop, and `fit`, the loop for a whole experiment.

`init`, `step` and `run` are pure functions (see `rlx.loop`). `fit` trains many seeds
and hyper-parameters in one compiled program, evaluates them, keeps a run folder and
resumes exactly.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlx import program, sharding, warm_start
from rlx.fitting import DivergedError, Interrupted, Loop, Recipe, Settings
from rlx.journal import Journal, Row
from rlx.loop import gradient_steps, init, iterations_for, run, step
from rlx.types import DataSource, Env, Method, PyTree, TrainState

__all__ = [
    "DivergedError",
    "Interrupted",
    "Recipe",
    "Result",
    "Settings",
    "fit",
    "gradient_steps",
    "init",
    "iterations_for",
    "run",
    "step",
]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a fit leaves in memory."""

    state: TrainState
    """All runs' states; leaves lead with the axis of runs `[N, ...]`.

    NumPy arrays on the host where no number of devices divides the runs evenly."""
    runs: list[dict[str, float]]
    """`[N]` seed and hyper-parameters of each run."""
    rows: list[Row]
    """One per evaluation."""
    folder: Path | None = None

    @property
    def steps(self) -> np.ndarray:
        """`[K]` environment steps at each evaluation."""
        return np.array([row["step"] for row in self._evaluated])

    @property
    def returns(self) -> np.ndarray:
        """`[K, N]` mean evaluation return per evaluation and run."""
        return np.array([row["return"] for row in self._evaluated], np.float64)

    @property
    def _evaluated(self) -> list[Row]:
        return [row for row in self.rows if "return" in row]


def fit(  # noqa: PLR0913 (the front door: everything is given by name)
    method: Method | Callable[[Mapping[str, Any]], Method],
    source: DataSource,
    *,
    num_steps: int,
    seeds: int | Sequence[int] = 1,
    hyper: Mapping[str, Sequence[float]] | None = None,
    start: Mapping[str, PyTree] | None = None,
    save_to: str | Path | None = None,
    resume: bool = False,
    on_row: Callable[[Row], None] | None = None,
    on_progress: Callable[[Row], None] | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> Result:
    """Trains all seeds and hyper-parameters together, evaluates and records them.

    Everything runs in compiled programs; the host looks in about every two seconds.
    Run i equals the run that trains its seed alone.

    Args:
      method: a method, or with `hyper` a function from one setting of the
        hyper-parameters (name to scalar array) to a method.
      source: where batches come from.
      num_steps: environment steps per run (batches, for a dataset).
      seeds: how many (0, 1, ...), or which.
      hyper: name to `[K]` values; trains every seed with each of the K settings.
      start: what the runs begin with in place of the method's own: `params` (also of
        the target), `stats`, or both, leaves `[N, ...]`, one for each run. For example
        `{"params": result.state.learner.params}` of an earlier fit. Without effect on
        what `resume` goes on with.
      save_to: run folder to make (config, metrics, checkpoints).
      resume: go on in the existing folder `save_to` from its last checkpoint, as if
        there had been no break; a missing or empty folder is begun.
      on_row: called with every row of the record.
      on_progress: called about every two seconds with `step`, `steps_per_second` and
        `seconds_left`.
      settings: evaluation, checkpoints, memory.

    Returns:
      The final state, the rows and what each run was.

    Raises:
      ValueError: `num_steps` is no whole number of batches; seeds not distinct;
        `start` is not what the method has.
      RunFolderError: `save_to` is occupied, or holds other runs than those to resume.
      CheckpointError: nothing can be saved (disk full), or the checkpoint to resume
        from is damaged.
      DivergedError: NaN or infinity in the data or the learning.
      Interrupted: Ctrl-C or SIGTERM, after saving.
    """
    total = iterations_for(source, num_steps)
    if isinstance(method, Method):
        if hyper:
            raise ValueError(
                f"hyper ({', '.join(hyper)}) has no effect on a finished method: give "
                "fit a function from hyper-parameters to a method"
            )
        make_method = _always(method)
    else:
        make_method = method
    numbers = range(seeds) if isinstance(seeds, int | np.integer) else seeds
    runs, labels = program.make_runs(numbers, hyper)
    if start:
        first = make_method({name: x[0] for name, x in runs.hyper.items()})
        begin = warm_start.checked(start, first, source.num_envs, len(labels))
        runs = runs.replace(start=begin)
    config = {
        "num_envs": source.num_envs,
        **_experiment(settings, num_steps, labels),
        **(settings.config or {}),
    }
    with Journal(save_to, resume, labels, settings.keep) as journal:
        programs = program.build(
            make_method,
            source,
            runs,
            evaluation_env=_evaluation_env(source, settings),
            num_episodes=settings.episodes,
            group=settings.group,
            compiler_options=settings.compiler_options,
        )
        journal.begin(config)
        progress = journal.restore(programs.abstract)
        if progress is None:
            progress = programs.init(programs.runs)
        loop = Loop(source, programs, total, settings, journal)
        progress = loop.go(progress, on_row, on_progress)
        state = sharding.unpad(progress.state, len(labels))
        return Result(state, labels, journal.rows, journal.path)


def _always(method: Method) -> Callable[[Mapping[str, Any]], Method]:
    return lambda hyper: method


def _experiment(
    settings: Settings, num_steps: int, labels: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What the command line wants to know of a run, where a recipe says it."""
    recipe = settings.recipe
    if recipe is None:
        return {}
    try:
        module = importlib.import_module(f"rlx.methods.{recipe.method}")
    except ImportError as error:
        raise ValueError(
            f"recipe: no method {recipe.method!r} in rlx.methods"
        ) from error
    config = module.Config() if recipe.config is None else recipe.config
    if not isinstance(config, module.Config):
        raise ValueError(
            f"recipe: config must be a {recipe.method}.Config, got {config!r}"
        )
    experiment = {
        "method": recipe.method,
        "config": config,
        "env": recipe.env,
        "env_options": recipe.env_options,
        "source": None,
        "source_options": {},
        "steps": int(num_steps),
        "seeds": sorted({int(label["seed"]) for label in labels}),
        "grid": {},
        "evaluations": settings.evaluations,
        "episodes": settings.episodes,
    }
    return {"experiment": experiment}


def _evaluation_env(source: DataSource, settings: Settings) -> Env | None:
    env = settings.evaluation_env or source.env
    if env is None or settings.episode_steps is None:
        return env
    spec = dataclasses.replace(env.spec, time_limit=settings.episode_steps)
    return env._replace(spec=spec)
