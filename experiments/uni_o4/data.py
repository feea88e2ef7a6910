"""The datasets of this page: PPO learns a task, its checkpoints act.

    python -m experiments.uni_o4.data --tasks hopper

Two commands of `rlx` per task and set, both printed: `rlx train ppo` keeps fifty
checkpoints, `rlx data collect` lets them act. Sets that are there are kept.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

from experiments.uni_o4.tasks import DATA, KINDS, TASKS, TRANSITIONS, file_of

STEPS = 1_000_000
"""Of PPO; its last policy is the expert."""


def run(*words: str) -> None:
    """One command of `rlx`; its failure ends this program."""
    print("rlx", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "rlx.cli", *words], check=True)


def make(task: str, kinds: tuple[str, ...] = KINDS) -> None:
    """All datasets of a task."""
    missing = [kind for kind in kinds if not file_of(task, kind).exists()]
    if not missing:
        return
    folder = DATA / f"{task}-ppo"
    options = ["--env", task, "--steps", str(STEPS), "--out", str(folder), "--resume"]
    run("train", "ppo", *options, "--keep", "50", "--evaluations", "50")
    for kind in missing:
        out = str(file_of(task, kind))
        run(
            *("data", "collect", kind, str(folder)),
            *("--steps", str(TRANSITIONS), "--out", out),
        )


def main() -> None:
    """Makes what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["hopper"], choices=list(TASKS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    arguments = parser.parse_args()
    for task in arguments.tasks:
        make(task, tuple(arguments.kinds))


if __name__ == "__main__":
    main()
