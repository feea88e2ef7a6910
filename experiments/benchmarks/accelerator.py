"""PPO and MDPO with thousands of MJX environments, against `brax.training`'s PPO.

    python -m experiments.benchmarks.accelerator               # on a GPU
    python -m experiments.benchmarks.accelerator --rows mdpo brax --steps 20000000

Every row is a training with evaluations in a process of its own, one after another: all
have the same task, environments, batch, passes and networks (two of 64 x 64 units).
Brax trains one seed at a time, rlx one and 16 together. A row says how many steps a
second all its seeds took (evaluation and compilation left out), how long it compiled,
the most memory it had on the device, and after how many seconds of training each seed's
evaluation first reached `--target` (null: never). On a CPU name an easy task:

    python -m experiments.benchmarks.accelerator --env probe/pendulum --engine "" \
        --num-envs 16 --num-minibatches 4 --seeds 2 --steps 20480 --evaluations 5 \
        --target -300
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.race import RESULTS, ROOT
from experiments.records import write

ROWS = ("ppo", "mdpo", "ppo_seeds", "mdpo_seeds", "brax")
FOLDER = "experiments.benchmarks.contestants"


def command(row: str, options: argparse.Namespace) -> list[str]:
    """The command line of a row's process."""
    shared = {
        "env": options.env,
        "num-envs": options.num_envs,
        "length": options.length,
        "num-epochs": options.num_epochs,
        "num-minibatches": options.num_minibatches,
        "steps": options.steps,
        "evaluations": options.evaluations,
        "episodes": options.episodes,
    }
    if options.engine:
        shared["engine"] = options.engine
    if row == "brax":
        module = "brax_accelerator"
    else:
        module, method = "rlx_accelerator", row.removesuffix("_seeds")
        seeds = options.seeds if row.endswith("_seeds") else 1
        shared |= {"method": method, "seeds": seeds}
    words = [sys.executable, "-m", f"{FOLDER}.{module}"]
    for name, value in shared.items():
        words += [f"--{name}", str(value)]
    return words


def measure(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one row.

    Raises:
      RuntimeError: its process failed; says what it wrote last.
    """
    words = command(row, options)
    ended = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{row} ended with status {ended.returncode}: {last}")
    answer = json.loads(ended.stdout.strip().splitlines()[-1])
    returns = np.array(answer["returns"])
    return {
        "row": row,
        **answer,
        "seconds_to_target": reached(
            returns, answer["seconds_of_training"], options.target
        ),
    }


def reached(
    returns: np.ndarray, seconds: list[float], target: float
) -> list[float | None]:
    """Seconds at each seed's first evaluation at or above the target.

    Args:
      returns: `[K, N]` of K evaluations and N seeds.
      seconds: `[K]` of training until each evaluation.
      target: the return wanted.
    """
    there = returns >= target
    first = np.argmax(there, axis=0)
    return [
        float(seconds[k]) if there[k, i] else None for i, k in enumerate(first.tolist())
    ]


def show(row: dict[str, Any]) -> None:
    """One line for a person."""
    peak = row["peak_mib"] or row["program_mib"]
    memory = "unknown" if peak is None else f"{peak:.0f} MiB"
    final = np.mean(row["returns"][-1])
    print(
        f"{row['row']:12} {row['steps_per_second']:>12,.0f} steps/s, compiled in "
        f"{row['compile_seconds']:.0f} s, {memory}, mean return {final:.0f}, "
        f"to the target {row['seconds_to_target']}",
        flush=True,
    )


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--env", default="hopper")
    parser.add_argument("--engine", default="mjx", help="of a MuJoCo task; '': none")
    parser.add_argument("--num-envs", type=int, default=2048)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--num-epochs", type=int, default=4)
    parser.add_argument("--num-minibatches", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=16, help="of the rows _seeds")
    parser.add_argument("--steps", type=int, default=10_000_000, help="of each seed")
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--target", type=float, default=2500.0)
    parser.add_argument("--output", type=Path, default=RESULTS / "accelerator.json")
    options = parser.parse_args()
    if options.num_envs % options.num_minibatches:
        parser.error("--num-envs must be a multiple of --num-minibatches, for Brax")
    words = ["python", "-m", "experiments.benchmarks.accelerator", *sys.argv[1:]]
    rows: list[dict[str, Any]] = []
    content = {
        "command": shlex.join(words),
        "date": datetime.date.today().isoformat(),
        "settings": {k: v for k, v in vars(options).items() if k != "output"},
        "rows": rows,
    }
    for name in options.rows:  # this process leaves the device to theirs
        rows.append(measure(name, options))
        show(rows[-1])
        write(options.output, content)


if __name__ == "__main__":
    main()
