"""The host's side of `train.fit`: when to evaluate, what to record, how to stop."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from rlx import checkpoint, sharding
from rlx.journal import Journal, Row
from rlx.program import Programs, Progress
from rlx.types import DataSource, Env, PyTree

SLICE_SECONDS = 2.0
"""Aim for the time between two looks at the clock and at interrupts."""


class DivergedError(RuntimeError):
    """NaN or infinity appeared; the last good checkpoint is kept."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the state was saved where a folder was given."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run is made of, by name, so that others can make it again.

    A `Method` and an `Env` are functions, which no file can hold. With their names in
    its run folder `rlx eval` and `rlx play` work on a run that Python made; they take
    the method that its module makes, whatever was put into it afterwards.
    """

    method: str
    """A module of `rlx.methods`."""
    env: str
    """As `envs.make` knows it."""
    config: Any = None
    """The method's `Config`; its defaults if None."""
    env_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `envs.make` was given beside the name."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How `fit` watches and keeps a run; none of it changes the numbers learned.

    Raises:
      ValueError: a number that must be positive is not.
    """

    evaluations: int = 20
    """Rows in the record: evaluations spread evenly over the run, beside the first."""
    episodes: int = 8
    """Episodes per evaluation and run."""
    evaluation_env: Env | None = None
    """Environment of evaluations; the data source's unless given."""
    episode_steps: int | None = None
    """Evaluation episodes are cut after as many steps; the environment's own time
    limit unless given."""
    keep: int = 3
    """Checkpoints kept, the last ones."""
    stop_on_nan: bool = True
    """Stop at the first run with NaN; if not, stop only when all runs have it."""
    group: int | None = None
    """Runs vmapped together on a device; chosen by backend and memory if None."""
    compiler_options: Mapping[str, Any] | None = None
    """Passed to XLA. `{"xla_cpu_use_fusion_emitters": False}` compiles faster and can
    run environments with long kinematic chains faster on a CPU (MJX, Brax); updates of
    small networks run slower with it: measure before choosing."""
    config: Mapping[str, Any] | None = None
    """What the run folder's `config.json` says beside what `fit` knows."""
    recipe: Recipe | None = None
    """Names for the run folder, with which `rlx eval` and `rlx play` can read it."""

    def __post_init__(self) -> None:
        for name in ("evaluations", "episodes", "episode_steps", "keep", "group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def slice_seconds(idle: float) -> float:
    """How long a slice should last: two seconds, or more where a call costs much.

    Runs that a device trains one after another are copied out of and into the array of
    all at every call, their replay included. At most a 20th of the time goes there.

    Args:
      idle: seconds that a call of no iterations takes.
    """
    return SLICE_SECONDS * max(1.0, 10.0 * idle)


class Loop:
    """Advances all runs in slices of some seconds, evaluates, saves."""

    def __init__(
        self,
        source: DataSource,
        programs: Programs,
        total: int,
        settings: Settings,
        journal: Journal,
    ):
        self.programs, self.total = programs, total
        self.settings, self.journal = settings, journal
        self.steps_per_iteration = source.steps_per_batch or 1
        self.num_runs = len(journal.labels)
        self.seconds_per_iteration: float | None = None
        self.slice_seconds = SLICE_SECONDS

    def go(
        self,
        progress: Progress,
        on_row: Callable[[Row], None] | None,
        on_progress: Callable[[Row], None] | None,
    ) -> Progress:
        """Runs to the end; raises `DivergedError` or `Interrupted` on the way."""
        iteration = int(np.max(sharding.gather(progress.state.iteration)))
        self._require_fit(iteration)
        if iteration == 0 and self.programs.evaluate is not None:
            self._row(progress, 0, 0.0, on_row)
        progress = self._measure_idle(progress)
        with signals_caught() as caught:
            for end in self._rows_after(iteration):
                started, first = time.perf_counter(), iteration
                while iteration < end:
                    count = self._slice(end - iteration)
                    progress = self._advance(progress, count)
                    iteration += count
                    self._check_finite(progress)
                    if on_progress is not None:
                        on_progress(self._report(iteration))
                    # At the end of an interval its row comes first: a state saved
                    # before it would come back without it.
                    if iteration < end and (signum := _agreed(caught)):
                        self._save(progress, iteration)
                        raise self._interrupted(iteration, signum)
                seconds = time.perf_counter() - started
                speed = (iteration - first) * self.steps_per_iteration / seconds
                self._row(progress, iteration, speed * self.num_runs, on_row)
                progress = self.programs.reset_metrics(progress)
                self._save(progress, iteration)
                if signum := _agreed(caught):
                    raise self._interrupted(iteration, signum)
        return progress

    def _rows_after(self, iteration: int) -> list[int]:
        """The iterations still to come at which a row is due."""
        count = min(self.settings.evaluations, self.total)
        ends = [(k * self.total + count // 2) // count for k in range(1, count + 1)]
        return [end for end in ends if end > iteration]

    def _require_fit(self, iteration: int) -> None:
        step, saved = iteration * self.steps_per_iteration, self.journal.step
        if saved is not None and saved != step:
            raise ValueError(
                f"{self.journal.path}: was trained in batches of "
                f"{saved // max(iteration, 1)} steps, not {self.steps_per_iteration}: "
                "resume it with its own num_envs and length"
            )
        if iteration > self.total:
            raise ValueError(
                f"{self.journal.path}: is at step {step} already: ask for num_steps of "
                "at least that"
            )

    def _slice(self, left: int) -> int:
        if self.seconds_per_iteration is None:
            return 1
        fitting = round(self.slice_seconds / max(self.seconds_per_iteration, 1e-9))
        return max(1, min(left, fitting))

    def _measure_idle(self, progress: Progress) -> Progress:
        """Calls the program for no iterations: nothing changes but `slice_seconds`."""
        for _ in range(2):  # the first call has more to do, once
            started = time.perf_counter()
            nothing = np.int32(0)
            progress = self.programs.advance(self.programs.runs, progress, nothing)
            jax.block_until_ready(progress)
            idle = time.perf_counter() - started
        self.slice_seconds = slice_seconds(sharding.agree(idle))
        return progress

    def _advance(self, progress: Progress, count: int) -> Progress:
        started = time.perf_counter()
        progress = self.programs.advance(self.programs.runs, progress, np.int32(count))
        jax.block_until_ready(progress)
        seconds = (time.perf_counter() - started) / count
        # Clocks differ between processes; their slices must not.
        self.seconds_per_iteration = sharding.agree(seconds)
        return progress

    def _save(self, progress: Progress, iteration: int) -> None:
        self.journal.save(iteration * self.steps_per_iteration, progress)

    def _report(self, iteration: int) -> Row:
        speed = self.steps_per_iteration / (self.seconds_per_iteration or 1.0)
        return {
            "step": iteration * self.steps_per_iteration,
            "total_steps": self.total * self.steps_per_iteration,
            "steps_per_second": speed * self.num_runs,
            "seconds_left": (self.total - iteration) * self.steps_per_iteration / speed,
        }

    def _row(
        self,
        progress: Progress,
        iteration: int,
        speed: float,
        on_row: Callable[[Row], None] | None,
    ) -> None:
        row: dict[str, Any] = {"step": iteration * self.steps_per_iteration}
        started = time.perf_counter()
        if self.programs.evaluate is not None:
            episodes = self.programs.evaluate(self.programs.runs, progress)
            episodes = self._gather(episodes)
            row["return"] = episodes.returns.mean(axis=1).tolist()
            row["episode_length"] = episodes.lengths.mean(axis=1).tolist()
        row["train"] = _means(*self._gather((progress.sums, progress.counts)))
        row["time"] = {
            "evaluation_s": time.perf_counter() - started,
            "compile_s": self.programs.compile_seconds,
            "steps_per_second": speed,
            "unix_s": time.time(),
        }
        if self.programs.memory_bytes is not None:
            row["memory_mib"] = self.programs.memory_bytes / 2**20
        self.journal.append(row)
        if on_row is not None:
            on_row(row)

    def _gather(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[: self.num_runs], sharding.gather(tree))

    def _check_finite(self, progress: Progress) -> None:
        bad = self._gather((progress.bad_iteration, progress.bad_data))
        wrong = np.flatnonzero(bad[0] >= 0)
        enough = self.num_runs if not self.settings.stop_on_nan else 1
        if len(wrong) < enough:
            return
        i = wrong[np.argmin(bad[0][wrong])]
        step = int(bad[0][i]) * self.steps_per_iteration
        cause = (
            "the environment returned NaN or an infinite reward: check its rewards and "
            "observations"
            if bad[1][i]
            else "the learning produced NaN or infinity: lower the learning rate"
        )
        kept = ""
        if self.journal.checkpoints is not None:
            last = checkpoint.latest(self.journal.checkpoints)
            where = f"step {last}" if last is not None else "none was due yet"
            kept = f"; last good checkpoint: {where} in {self.journal.checkpoints}"
        raise DivergedError(
            f"training diverged by step {step} in {len(wrong)} of {self.num_runs} "
            f"runs (first: {self._label(i)}): {cause}{kept}"
        )

    def _label(self, index: int) -> str:
        label = self.journal.labels[index]
        return ", ".join(f"{name} {value:g}" for name, value in label.items())

    def _interrupted(self, iteration: int, signum: int) -> Interrupted:
        name, path = signal.Signals(signum).name, self.journal.path
        how = "nothing was saved: give fit a folder with save_to"
        if path is not None:
            how = f"go on with `rlx resume {path}`, or fit(..., resume=True)"
        step = iteration * self.steps_per_iteration
        return Interrupted(f"stopped by {name} at step {step}; {how}", signum)


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of raising in mid-computation.

    A state whose buffers were just donated must not be lost to an exception. A second
    signal takes its ordinary course. Outside the main thread nothing is caught.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    # None: a handler that was not installed from Python, and cannot be put back.
    previous = {
        s: signal.getsignal(s) or signal.SIG_DFL
        for s in (signal.SIGINT, signal.SIGTERM)
    }

    def handler(signum: int, frame: Any) -> None:
        del frame
        caught.append(signum)
        signal.signal(signum, previous[signal.Signals(signum)])

    for signum in previous:
        signal.signal(signum, handler)
    try:
        yield caught
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)


def _agreed(caught: list[int]) -> int:
    """The signal that this or another process got; 0 if none did."""
    return int(sharding.agree(caught[0] if caught else 0))


def _means(
    sums: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]
) -> dict[str, list[float]]:
    return {
        name: np.where(
            counts[name] > 0, sums[name] / np.maximum(counts[name], 1), np.nan
        ).tolist()
        for name in sums
        if counts[name].any()
    }
