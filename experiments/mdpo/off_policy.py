"""SAC and off-policy MDPO on MuJoCo tasks: the learning curves of this page.

    python -m experiments.mdpo.off_policy --tasks hopper half_cheetah --seeds 4

Trains every task with every arm of `ARMS` and writes `results/off_policy_<arm>_<task>
.json` (steps, deterministic returns of every seed, IQM with its 95 % interval, all
settings, time, machine) and `results/off_policy_<task>.png`. `--resume` goes on with
what was begun and passes over what is finished. With `--summary` it only rewrites
`results/off_policy_summary.json` and the plots from the results there are.

One settings record, `Settings()`, serves all tasks and arms: nothing is tuned per task.
`--gradient-steps 8` learns twice as often from the same steps, and writes records of
its own, `results/off_policy_<arm>_<task>_8_steps.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.mdpo._shared import RESULTS, fit
from experiments.records import Curve, describe, origin, time_spent, write

TASKS = ("hopper", "half_cheetah", "walker2d", "inverted_double_pendulum", "ant")
TARGETS = {"half_cheetah": 4500.0, "hopper": 2000.0}
"""What SAC must reach within 500,000 steps."""
STEPS = 500_000
"""Environment steps per seed, the random ones of the warm-up included."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The CPU budget: the same for all tasks and arms."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    batch_size: int = 128
    num_envs: int = 16
    length: int = 1
    gradient_steps: int = 4
    """Per `num_envs * length` environment steps."""
    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    """Of the critics and of SAC's temperature."""
    capacity: int = 500_000
    """Transitions: all of the run."""
    warmup: int = 8_000
    """Environment steps with uniformly random actions."""
    evaluations: int = 20
    episodes: int = 8
    """Per evaluation and seed, by the deterministic policy."""


PROXIMAL = {"temperature": 0.2, "coefficient": 0.3, "reference_every": 250}
"""λ and m are the authors' for all tasks, m being 1,000 environment steps; c is theirs
for HalfCheetah, here for all."""
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", {}),
    "mdpo_off_policy": ("mdpo_off_policy", PROXIMAL),
    "mdpo_off_policy_tsallis": (
        "mdpo_off_policy",
        # q' in the middle of its range; summed over dimensions, as in their code.
        {**PROXIMAL, "tsallis_index": 1.5, "joint": False},
    ),
}
"""Name -> method and its own fields, for all tasks."""


def make_config(arm: str, settings: Settings) -> Any:
    """The config of an arm."""
    name, fields = ARMS[arm]
    config_class = importlib.import_module(f"rlx.methods.{name}").Config
    common = {
        "hidden_sizes": settings.hidden_sizes,
        "num_minibatches": settings.gradient_steps,
        "actor_learning_rate": settings.actor_learning_rate,
        "critic_learning_rate": settings.critic_learning_rate,
    }
    if name == "sac":
        common["temperature_learning_rate"] = settings.critic_learning_rate
    return config_class(**common, **fields)


def make_source(env: Any, settings: Settings) -> Any:
    """Replay with the settings' sizes."""
    from rlx.data.replay import replay

    return replay(
        env,
        num_envs=settings.num_envs,
        length=settings.length,
        batch_size=settings.batch_size,
        num_minibatches=settings.gradient_steps,
        capacity=settings.capacity,
        warmup=settings.warmup,
    )


def train_one(
    task: str,
    arm: str,
    seeds: range,
    steps: int,
    settings: Settings,
    folder: Path,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains one task with one arm; returns the record to write.

    Its `steps` count the warm-up, which `train.fit` does not.
    """
    import envs
    from rlx import train

    config = make_config(arm, settings)
    env = envs.make(task)
    described = {
        "method": arm,
        "env": task,
        "num_steps": steps,
        "config": config,
        "settings": dataclasses.asdict(settings),
    }
    module = importlib.import_module(f"rlx.methods.{ARMS[arm][0]}")
    result, outcome = fit(
        f"{task} {arm}",
        module.make(env.spec, config),
        make_source(env, settings),
        num_steps=steps - settings.warmup,
        seeds=seeds,
        save_to=folder,
        resume=resume,
        settings=train.Settings(
            evaluations=settings.evaluations,
            episodes=settings.episodes,
            keep=1,  # the ring is most of a checkpoint
            config=described,
        ),
    )
    outcome["steps"] = [step + settings.warmup for step in outcome["steps"]]
    return {
        "study": "off_policy",
        "env": task,
        "arm": arm,
        **outcome,
        **time_spent(result),
        "config": dataclasses.asdict(config),
        "settings": dataclasses.asdict(settings),
        **origin("mdpo.off_policy"),
    }


def summarize() -> None:
    """The table of final returns and a plot per task, from the results there are."""
    from rlx import plot

    rows: list[dict[str, Any]] = []
    by_task: dict[str, dict[str, Curve]] = {}
    for (task, arm, gradient_steps), parts in _by_arm().items():
        steps = np.array(parts[0]["steps"])
        returns = np.concatenate([np.array(part["returns"]) for part in parts], axis=1)
        usual = gradient_steps == Settings().gradient_steps
        label = arm if usual else f"{arm}, {gradient_steps} gradient steps"
        by_task.setdefault(task, {})[label] = Curve(steps, returns)
        spent = sum(part["wall_seconds_of_training"] for part in parts)
        rows.append(
            {
                "task": task,
                "arm": arm,
                "gradient_steps": gradient_steps,
                "seeds": returns.shape[1],
                "num_steps": int(steps[-1]),
                "target": TARGETS.get(task) if arm == "sac" else None,
                "wall_seconds_per_seed": round(spent / returns.shape[1], 1),
                **describe(returns[-1]),
            }
        )
    summary = {"rows": rows, **origin("mdpo.off_policy", ["--summary"])}
    write(RESULTS / "off_policy_summary.json", summary)
    for task, curves in by_task.items():
        plot.curve(curves, RESULTS / f"off_policy_{task}.png")
    for row in rows:
        print(
            f"{row['task']:26} {row['arm']:24} {row['gradient_steps']} gradient steps "
            f"{row['seeds']} seeds  IQM "
            f"{row['iqm']:7.0f} [{row['low']:.0f}, {row['high']:.0f}]"
        )


def _by_arm() -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """The records there are; those that differ in their seeds alone lie together.

    Raises:
      ValueError: two records of an arm differ in more than their seeds.
    """
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("off_policy_*_*.json")):
        content = json.loads(path.read_text())
        steps = content["settings"]["gradient_steps"]
        parts = found.setdefault((content["env"], content["arm"], steps), [])
        same = ("steps", "settings", "config")
        if parts and any(parts[0][key] != content[key] for key in same):
            raise ValueError(
                f"{path}: has other steps or settings than the other records of "
                f"{content['arm']} on {content['env']}: remove what is outdated"
            )
        parts.append(content)
    return found


def run(arguments: argparse.Namespace) -> None:
    """Trains every arm on every task and writes the records."""
    from rlx import sharding

    sharding.use_cpu_cores()
    settings = Settings(gradient_steps=arguments.gradient_steps)
    first = arguments.first_seed
    for task in arguments.tasks:
        for arm in arguments.methods:
            name = f"{arm}_{task}" + (f"_from_seed_{first}" if first else "")
            if settings != Settings():
                name += f"_{settings.gradient_steps}_steps"
            path = RESULTS / f"off_policy_{name}.json"
            if arguments.resume and _is_done(path, arm, arguments.steps, settings):
                print(f"{path.name}: there already", flush=True)
                continue
            record = train_one(
                task,
                arm,
                range(first, first + arguments.seeds),
                arguments.steps,
                settings,
                arguments.out / name,
                arguments.resume,
            )
            write(path, record)


def _is_done(path: Path, arm: str, steps: int, settings: Settings) -> bool:
    """True where the record of just such a run is there."""
    if not path.exists():
        return False
    content = json.loads(path.read_text())
    wanted = {
        "settings": dataclasses.asdict(settings),
        "config": dataclasses.asdict(make_config(arm, settings)),
    }
    same = json.loads(json.dumps(wanted))  # tuples become lists
    return content["steps"][-1] == steps and all(content[k] == same[k] for k in same)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS[:4]), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, default=4, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--gradient-steps", type=int, default=Settings.gradient_steps, help="per batch"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/experiments/off_policy"))
    parser.add_argument(
        "--resume", action="store_true", help="go on with what is there"
    )
    parser.add_argument("--summary", action="store_true", help="no training")
    arguments = parser.parse_args()
    if not arguments.summary:
        run(arguments)
    summarize()


if __name__ == "__main__":
    main()
