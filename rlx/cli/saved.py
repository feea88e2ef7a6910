"""`rlx eval`, `rlx play`, `rlx plot`: what a run folder can still do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlx import evaluate, plot
from rlx import saved as saved_lib
from rlx.cli import experiment as experiments
from rlx.cli import film, play, progress, start
from rlx.cli.errors import UsageError
from rlx.cli.experiment import Experiment, Parts
from rlx.json_values import to_json
from rlx.ops import statistics
from rlx.record import RunFolder
from rlx.types import LearnerState, Policy


class Saved(NamedTuple):
    """A run of the past, ready to act, and what it was made of."""

    experiment: Experiment
    parts: Parts
    run: saved_lib.Saved

    @property
    def learners(self) -> LearnerState:
        """Leaves lead with the axis of runs `[N, ...]`."""
        return self.run.learners

    @property
    def labels(self) -> list[dict[str, float]]:
        """`[N]` seed and hyper-parameters of each run."""
        return self.run.labels

    @property
    def step(self) -> int:
        """Environment steps of each run."""
        return self.run.step

    def policy(self, index: int) -> Policy:
        """Return the policy of one run."""
        return self.run.policy(index)

    def hyper(self, index: int) -> dict[str, Any]:
        """Return the hyper-parameters of one run, as the training had them."""
        return self.run.hyper(index)

    def name(self, index: int) -> str:
        """Return what tells a run from the others: `seed 3, learning_rate 0.001`."""
        return ", ".join(f"{n} {value:g}" for n, value in self.labels[index].items())


def load(path: str, step: int | None) -> Saved:
    """Load the learners of a run folder; replay buffers and the like stay on the disk.

    Raises:
      RunFolderError, CheckpointError, UsageError: it is no run, or cannot be loaded.
    """
    start.prepare()
    folder = RunFolder.open(path)
    experiment = experiments.from_folder(folder)
    parts = experiment.build()
    streams = folder.config().get("num_envs", parts.source.num_envs)
    run = saved_lib.load(path, parts.make_method, step, streams)
    return Saved(experiment, parts, run)


# -------------------------------------------------------------------------------- eval


def eval_run(arguments: Any) -> int:
    """Evaluate every policy of a run on fresh episodes."""
    saved = load(arguments.run, arguments.step)
    found = saved.run.evaluate(
        saved.parts.env,
        num_episodes=arguments.episodes,
        seed=arguments.seed,
        sample=arguments.sample,
    )
    columns = [np.asarray(x) for x in (found.returns, found.lengths, found.terminated)]
    if arguments.json:
        rows = [
            {**label, "returns": r, "lengths": n, "terminated": t}
            for label, r, n, t in zip(saved.labels, *columns, strict=True)
        ]
        print(json.dumps(to_json({"step": saved.step, "runs": rows})))
        return 0
    _report(saved, columns[0], columns[1], sample=arguments.sample)
    return 0


def _report(
    saved: Saved, returns: np.ndarray, lengths: np.ndarray, sample: bool
) -> None:
    number, kept = progress.number, saved.experiment
    mode = "sampled actions" if sample else "deterministic policy"
    print(
        f"{kept.method} on {kept.env} at {progress.short(saved.step)} steps: "
        f"{returns.shape[1]} episodes per run, {mode}"
    )
    for index, (scores, steps) in enumerate(zip(returns, lengths, strict=True)):
        print(
            f"  {saved.name(index)}: return {number(scores.mean())} ± "
            f"{number(scores.std())} ({number(scores.min())} to "
            f"{number(scores.max())}), length {number(steps.mean())}"
        )
    settings: dict[str, list[int]] = {}
    for index, label in enumerate(saved.labels):
        hyper = [f"{name} {v:g}" for name, v in label.items() if name != "seed"]
        settings.setdefault(", ".join(hyper), []).append(index)
    for setting, members in settings.items():
        if len(members) > 1:
            scores = returns[members].mean(axis=1)[:, None]
            low, high = statistics.stratified_bootstrap_interval(
                jax.random.key(0), scores
            )
            print(
                f"interquartile mean of {len(members)} seeds"
                f"{' at ' + setting if setting else ''}: "
                f"{number(float(statistics.iqm(scores)))}, 95 % interval "
                f"{number(float(low))} to {number(float(high))}"
            )


# ------------------------------------------------------------------------ play and plot


def play_run(arguments: Any) -> int:
    """Film one episode of one policy, or let a person talk to it."""
    saved = load(arguments.run, arguments.step)
    render = saved.parts.env.render
    if render is None and not play.is_conversation(saved.parts.env):
        raise UsageError(
            f"{saved.experiment.env} has nothing to draw: its environment has no "
            f"`render`; `rlx eval {arguments.run} --json` tells its episodes"
        )
    if not 0 <= arguments.index < len(saved.labels):
        raise UsageError(
            f"--index {arguments.index}: {arguments.run} holds the runs 0 to "
            f"{len(saved.labels) - 1}"
        )
    if render is None:
        play.talk(saved.parts.env, saved.policy(arguments.index), arguments.seed)
        return 0
    out = Path(arguments.out or Path(arguments.run, "episode.gif"))
    film.check(out)
    states = evaluate.trajectory(
        saved.parts.env,
        saved.policy(arguments.index),
        jax.random.key(arguments.seed),
        max_steps=arguments.max_steps,
    )
    frequency = saved.parts.env.spec.control_frequency or float(arguments.fps)
    fps = max(1, min(arguments.fps, round(frequency)))
    shown = film.select(len(states), frequency, fps, arguments.seconds)
    frames = [np.asarray(render(states[index])) for index in shown]
    film.write(frames, out, fps)
    strip = out.with_name("rollout.png")
    times = [index / frequency for index in shown]
    film.write_strip(frames, times, strip)
    print(
        f"{saved.name(arguments.index)} at {progress.short(saved.step)} steps: "
        f"{len(states) - 1} steps, filmed {len(frames)} pictures: {out}, {strip}"
    )
    return 0


def plot_run(arguments: Any) -> int:
    """Draw the learning curves of one or several runs."""
    paths = [Path(path) for path in arguments.run]
    default = paths[0] / "curve.png" if len(paths) == 1 else Path("curves.png")
    out = Path(arguments.out or default)
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: curves are PNG files")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    plot.curve(dict(zip(names, paths, strict=True)), out, arguments.metric)
    print(out)
    return 0
