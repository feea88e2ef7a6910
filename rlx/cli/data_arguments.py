"""The arguments of `rlx data`. Nothing heavy is imported: `--help` is instant."""

from __future__ import annotations

import argparse

from rlx.cli.arguments import positive, steps

KINDS = ("random", "medium", "medium-replay", "medium-expert", "expert")
_COLLECT = """\
Let the policies of a run act, and write down what happens (HDF5; see
rlx.data.dataset_files). Actions are sampled as the policy samples, then clipped to the
bounds. The expert is the run's last checkpoint; medium is the first kept checkpoint
whose normalised score lies in --band: train with --keep 50 --evaluations 50, so that
there is one. Scores are 0 for uniformly random actions and 100 for the expert, by the
mean return of --episodes episodes each (deterministic policy).

medium-replay is not a replay buffer: every kept checkpoint up to medium acts anew for
the same number of steps. medium-expert is half medium, half expert.
"""


def register(commands: argparse._SubParsersAction) -> None:
    """Add `rlx data` to the commands."""
    text = "offline datasets: collect, check, info"
    command = commands.add_parser("data", help=text, description=text)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    _collect(actions)
    text = "say everything that looks wrong in a dataset; 1 if it would be refused"
    _file(actions, "check", text)
    _file(actions, "info", "say what is in a dataset")


def band(text: str) -> tuple[float, float]:
    """Read two ascending numbers: 35,50."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not low < high:
        raise argparse.ArgumentTypeError(f"two numbers such as 35,50, got {text!r}")
    return low, high


def _collect(actions: argparse._SubParsersAction) -> None:
    command = actions.add_parser(
        "collect",
        help="make a dataset with the policies of a run",
        description=_COLLECT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("kind", choices=KINDS, help="who acts")
    add("run", metavar="RUN", help="a run folder")
    add("--steps", type=steps, default=100_000, help="transitions; 100k")
    add("--out", metavar="FILE", help="ENV-KIND.h5 here unless given")
    add("--index", type=int, default=0, help="which run of several; 0")
    add("--band", type=band, default=(35.0, 50.0), help="medium's scores; 35,50")
    add("--medium-step", type=steps, help="the checkpoint that is medium")
    add("--expert-step", type=steps, help="the checkpoint that is expert; the last")
    add("--episodes", type=positive, default=32, help="behind each score; 32")
    add("--num-envs", type=positive, help="side by side; a tenth of the episodes")
    add("--seed", type=int, default=0, help="of everything random; 0")


def _file(actions: argparse._SubParsersAction, name: str, text: str) -> None:
    command = actions.add_parser(name, help=text, description=text)
    add = command.add_argument
    add("file", metavar="FILE", help="of rlx, D4RL, Minari (or its folder), OGBench")
    add("--env", metavar="NAME", help="the environment that the data must fit")
    add("--time-limit", type=positive, help="of episodes, if FILE does not say")
    add("--keys", nargs="+", help="entries of dictionary observations, in this order")
    add("--json", action="store_true", help="print JSON")
