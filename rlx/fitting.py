"""The host's side of `train.fit`: when to evaluate, what to record, how to stop."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlx import checkpoint, record, sharding
from rlx.program import Programs, Progress, Run
from rlx.types import DataSource, Env, PyTree

Row = Mapping[str, Any]
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
class Settings:
    """How `fit` watches and keeps a run; none of it changes the numbers learned."""

    evaluations: int = 20
    """Rows in the record: evaluations spread evenly over the run."""
    episodes: int = 8
    """Episodes per evaluation and run."""
    evaluation_env: Env | None = None
    """Environment of evaluations; the data source's unless given."""
    keep: int = 3
    """Checkpoints kept, the last ones."""
    stop_on_nan: bool = True
    """Stop at the first run with NaN; if not, stop only when all runs have it."""
    group: int | None = None
    """Runs vmapped together on a device; chosen by backend and memory if None."""
    compiler_options: Mapping[str, Any] | None = None
    """Passed to XLA. `{"xla_cpu_use_fusion_emitters": False}` compiles up to twice as
    fast and, for environments with long kinematic chains on a CPU (MJX, Brax), runs
    far faster; small networks run slower with it."""
    config: Mapping[str, Any] | None = None
    """What the run folder's `config.json` says beside what `fit` knows."""


class Journal:
    """The run folder of a fit, or memory alone when no folder is wanted."""

    def __init__(
        self,
        path: str | Path | None,
        resume: bool,
        labels: list[dict[str, float]],
        settings: Settings,
    ):
        self.path = Path(path) if path is not None else None
        self.rows: list[Row] = []
        self._resume = resume
        self.labels = labels
        self._settings = settings
        self._folder: Any = None

    def __enter__(self) -> Journal:
        if self.path is None:
            return self
        first = jax.process_index() == 0
        if self._resume and self.path.exists():
            # One process writes the rows; all of them write checkpoints together.
            self._folder = record.RunFolder.open(self.path, write=first)
        elif first:
            config = {**(self._settings.config or {}), "runs": self.labels}
            self._folder = record.RunFolder.create(self.path, config)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._folder is not None:
            self._folder.close()

    @property
    def checkpoints(self) -> Path | None:
        """Where checkpoints lie; None when no folder is wanted."""
        return None if self.path is None else self.path / "checkpoints"

    def restore(self, like: PyTree) -> Progress | None:
        """The last checkpoint of a resumed folder, and the rows up to it."""
        if self.checkpoints is None or not self._resume:
            return None
        latest = checkpoint.latest(self.checkpoints)
        progress = None
        if latest is not None:
            progress = checkpoint.load(self.checkpoints, like, latest)
        if self._folder is not None:
            if jax.process_index() == 0:
                self._folder.keep_rows_up_to(-1 if latest is None else latest)
            self.rows = list(self._folder.rows())
        return progress

    def append(self, row: Row) -> None:
        """Records one row."""
        self.rows.append(row)
        if self._folder is not None and jax.process_index() == 0:
            self._folder.append(row)

    def save(self, step: int, progress: Progress) -> None:
        """Writes a checkpoint."""
        if self.checkpoints is not None:
            checkpoint.save(self.checkpoints, step, progress, keep=self._settings.keep)


class Loop:
    """Advances all runs in slices of about two seconds, evaluates, saves."""

    def __init__(
        self,
        source: DataSource,
        programs: Programs,
        runs: Run,
        total: int,
        settings: Settings,
        journal: Journal,
    ):
        self.programs, self.runs, self.total = programs, runs, total
        self.settings, self.journal = settings, journal
        self.steps_per_iteration = source.steps_per_batch or 1
        self.num_runs = runs.train_key.shape[0]
        self.seconds_per_iteration: float | None = None

    def go(
        self,
        progress: Progress,
        on_row: Callable[[Row], None] | None,
        on_progress: Callable[[Row], None] | None,
    ) -> Progress:
        """Runs to the end; raises `DivergedError` or `Interrupted` on the way."""
        interval = max(1, round(self.total / max(self.settings.evaluations, 1)))
        iteration = int(np.max(sharding.gather(progress.state.iteration)))
        if iteration == 0 and self.programs.evaluate is not None:
            self._row(progress, 0, 0.0, on_row)
        with signals_caught() as caught:
            while iteration < self.total:
                end = min((iteration // interval + 1) * interval, self.total)
                started, first = time.perf_counter(), iteration
                while iteration < end:
                    count = self._slice(end - iteration)
                    progress = self._advance(progress, count)
                    iteration += count
                    self._check_finite(progress)
                    if on_progress is not None:
                        on_progress(self._report(iteration))
                    if caught:
                        self._interrupt(progress, iteration, caught[0])
                seconds = time.perf_counter() - started
                speed = (iteration - first) * self.steps_per_iteration / seconds
                self._row(progress, iteration, speed * self.num_runs, on_row)
                progress = self.programs.reset_metrics(progress)
                self.journal.save(iteration * self.steps_per_iteration, progress)
        return progress

    def _slice(self, left: int) -> int:
        if jax.process_count() > 1:
            return left  # clocks differ between processes; slices must not
        if self.seconds_per_iteration is None:
            return 1
        return max(1, min(left, round(SLICE_SECONDS / self.seconds_per_iteration)))

    def _advance(self, progress: Progress, count: int) -> Progress:
        started = time.perf_counter()
        progress = self.programs.advance(self.runs, progress, np.int32(count))
        jax.block_until_ready(progress)
        self.seconds_per_iteration = (time.perf_counter() - started) / count
        return progress

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
            episodes = sharding.gather(self.programs.evaluate(self.runs, progress))
            row["return"] = episodes.returns.mean(axis=1).tolist()
            row["episode_length"] = episodes.lengths.mean(axis=1).tolist()
        row["train"] = _means(progress)
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

    def _check_finite(self, progress: Progress) -> None:
        bad = sharding.gather((progress.bad_iteration, progress.bad_data))
        wrong = np.flatnonzero(bad[0] >= 0)
        enough = self.num_runs if not self.settings.stop_on_nan else 1
        if len(wrong) < enough:
            return
        i = wrong[np.argmin(bad[0][wrong])]
        step = int(bad[0][i]) * self.steps_per_iteration
        cause = (
            "the environment returned NaN: check its rewards and observations"
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

    def _interrupt(self, progress: Progress, iteration: int, signum: int) -> None:
        step = iteration * self.steps_per_iteration
        self.journal.save(step, progress)
        where = self.journal.path
        how = f"; go on with --resume --out {where}" if where else "; nothing was saved"
        name = signal.Signals(signum).name
        raise Interrupted(f"stopped by {name} at step {step}{how}", signum)


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
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

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


def _means(progress: Progress) -> dict[str, list[float]]:
    sums, counts = sharding.gather((progress.sums, progress.counts))
    return {
        name: np.where(
            counts[name] > 0, sums[name] / np.maximum(counts[name], 1), np.nan
        ).tolist()
        for name in sums
        if counts[name].any()
    }
