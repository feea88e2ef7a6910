"""`rlx train`, `rlx sweep`, `rlx resume`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlx import plot, record, sharding, train
from rlx.cli import experiment as experiments
from rlx.cli import processes, progress, start
from rlx.cli.errors import UsageError
from rlx.cli.experiment import Experiment
from rlx.json_values import differences, from_json
from rlx.record import RunFolder
from rlx.types import EnvSpec


def run(arguments: Any) -> int:
    """Train, or go on training, what the command line asks for."""
    for name in ("env", "steps"):
        if getattr(arguments, name) is None:
            raise UsageError(
                f"--{name} is missing: rlx {arguments.command} {arguments.method} "
                "--env hopper --steps 1M"
            )
    if arguments.command == "sweep" and not arguments.grid:
        raise UsageError("--grid is missing: --grid learning_rate=1e-4,3e-4")
    processes.join(arguments)
    start.prepare(cores=True)
    wanted = experiments.from_arguments(arguments)
    default = f"runs/{wanted.env.replace('/', '-')}_{wanted.method}"
    path = Path(arguments.out or default + ("_sweep" if wanted.grid else ""))
    with sharding.together(record.RunFolderError):
        if arguments.resume and path.exists():
            _require_same(RunFolder.open(path), wanted)
        else:
            record.require_free(path)
    return _fit(wanted, path, arguments)


def resume(arguments: Any) -> int:
    """Go on with a run from its folder alone."""
    processes.join(arguments)
    start.prepare(cores=True)
    folder = RunFolder.open(arguments.run)
    wanted = experiments.from_folder(folder)
    if wanted.source is None:
        raise UsageError(
            f"{folder.path}: was made from Python, which alone knows its data source: "
            f"go on there, train.fit(..., save_to='{folder.path}', resume=True)"
        )
    kept = folder.config()["experiment_settings"]
    arguments.keep, arguments.keep_going = kept["keep"], kept["keep_going"]
    arguments.resume = True
    return _fit(wanted, folder.path, arguments)


def _require_same(folder: RunFolder, wanted: Experiment) -> None:
    kept = folder.config().get("experiment", {})
    changed = differences(kept, from_json(wanted.to_config()["experiment"]))
    if changed:
        raise UsageError(
            f"{folder.path}: is another run, {'; '.join(changed[:3])}: repeat its own "
            f"command (`rlx resume {folder.path}` does) or give another --out"
        )


def _fit(wanted: Experiment, path: Path, arguments: Any) -> int:
    parts = wanted.build()
    settings = train.Settings(
        evaluations=wanted.evaluations,
        episodes=wanted.episodes,
        evaluation_env=parts.env,
        keep=arguments.keep,
        stop_on_nan=not arguments.keep_going,
        config={
            **wanted.to_config(),
            "experiment_settings": {
                "keep": arguments.keep,
                "keep_going": arguments.keep_going,
            },
            "env_spec": _plain(parts.source.env.spec) if parts.source.env else None,
        },
    )

    def fit(**show: Any) -> train.Result:
        return train.fit(
            parts.make_method if wanted.hyper else parts.make_method({}),
            parts.source,
            num_steps=wanted.steps,
            seeds=wanted.seeds,
            hyper=wanted.hyper,
            save_to=path,
            resume=arguments.resume,
            settings=settings,
            **show,
        )

    first = processes.is_first()
    with sharding.together(record.RunFolderError):
        names = arguments.write if first else ()
        writers = record.writers(names, path, wanted.to_config())
    if not first:
        fit()
        return 0
    labels = _labels(wanted)
    print(_headline(wanted, path), flush=True)
    started = time.monotonic()
    with writers as write, progress.Display(labels, wanted.steps) as display:
        on_row = _each(write, display.row)
        result = fit(on_row=on_row, on_progress=display.progress)
    _conclude(wanted, result, path, time.monotonic() - started)
    return 0


def _plain(spec: EnvSpec) -> EnvSpec:
    """What a run folder keeps of a spec: not the catalogue that a subclass may hold."""
    names = [field.name for field in dataclasses.fields(EnvSpec)]
    return EnvSpec(**{name: getattr(spec, name) for name in names})


def _each(*targets: Callable[[Mapping[str, Any]], None]) -> Callable[..., None]:
    def call(row: Mapping[str, Any]) -> None:
        for target in targets:
            target(row)

    return call


def _labels(wanted: Experiment) -> list[str]:
    """Return the setting of each run, in the order of `train.fit`."""
    hyper = wanted.hyper or {}
    settings = [
        ", ".join(
            f"{name} {value:g}" for name, value in zip(hyper, values, strict=True)
        )
        for values in zip(*hyper.values(), strict=True)
    ] or [""]
    return [setting for setting in settings for _ in wanted.seeds]


def _headline(wanted: Experiment, path: Path) -> str:
    runs = f"{len(wanted.seeds)} seed{'s' * (len(wanted.seeds) > 1)}"
    if wanted.hyper:
        count = len(next(iter(wanted.hyper.values())))
        runs = f"{count} settings x {runs}"
    steps = progress.short(wanted.steps)
    return f"{wanted.method} on {wanted.env}: {runs}, {steps} steps each, in {path}"


def _conclude(
    wanted: Experiment, result: train.Result, path: Path, seconds: float
) -> None:
    """Draw the curve and say what came out."""
    took = f"finished in {progress.duration(seconds)}"
    if not len(result.steps):
        print(f"{took}: {path}")
        return
    plot.curve(result, path / "curve.png")
    last = np.asarray(result.returns[-1], float)
    if wanted.hyper:
        labels = np.array(_labels(wanted))
        groups = {name: last[labels == name] for name in dict.fromkeys(labels.tolist())}
        ranked = sorted(groups, key=lambda name: -np.nanmean(groups[name]))
        for name in ranked:
            print(f"  {name}: return {progress.spread(groups[name])}")
        print(f"{took}: {path}")
    else:
        print(f"{took}, return {progress.spread(last)}: {path}")
    print(f"next: rlx play {path}   rlx eval {path}   curve: {path / 'curve.png'}")
