"""The arguments of every command. Nothing heavy is imported: `--help` is instant."""

from __future__ import annotations

import argparse
import re

from rlx.cli.errors import UsageError

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9}
_EPILOG = """\
A first run:
  rlx train mdpo --env hopper --seeds 4 --steps 1M --out runs/hopper
  rlx plot runs/hopper
  rlx play runs/hopper

`rlx train METHOD --help` explains every field that --set can change. RLX_DEBUG=1 shows
the traceback of an error.
"""


class Parser(argparse.ArgumentParser):
    """Raises instead of leaving the process, so that errors look alike everywhere."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise what argparse has to say."""
        raise UsageError(f"{message} (`{self.prog} --help` explains)")


def parser() -> Parser:
    """Return the parser of the `rlx` command."""
    from rlx.cli import data_arguments  # which needs the readers of numbers below

    top = Parser(
        prog="rlx",
        description="Functional reinforcement learning in JAX.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _train(commands)
    _sweep(commands)
    _resume(commands)
    _eval(commands)
    _play(commands)
    _plot(commands)
    _style(commands)
    _list(commands)
    data_arguments.register(commands)
    commands.add_parser("doctor", help="say what is here, what is missing, what helps")
    return top


def steps(text: str) -> int:
    """Read a number of steps: 1000000, 1_000_000, 1e6 or 1M."""
    match = re.fullmatch(r"([0-9._]+(?:e[0-9]+)?)([kKmMgG]?)", text.strip())
    try:
        number = float(match[1]) * _UNITS.get(match[2].lower(), 1) if match else 0.5
    except ValueError:
        number = 0.5
    if number < 1 or not float(number).is_integer():
        raise argparse.ArgumentTypeError(f"a number such as 500k or 1M, got {text!r}")
    return int(number)


def seeds(text: str) -> tuple[int, ...]:
    """Read `8` as the seeds 0 to 7, and `3,5` or `3,` as those very seeds."""
    try:
        if "," in text:
            found = tuple(int(part) for part in text.split(",") if part.strip())
        else:
            found = tuple(range(int(text)))
    except ValueError:
        found = ()
    if not found or len(set(found)) != len(found) or min(found) < 0:
        raise argparse.ArgumentTypeError(
            f"how many (8) or which ones (0,3,5), got {text!r}"
        )
    return found


def positive(text: str) -> int:
    """Read an integer of at least one."""
    number = int(text) if re.fullmatch(r"[0-9]+", text) else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a positive integer, got {text!r}")
    return number


# ---------------------------------------------------------------------------- commands


def _experiment(commands: argparse._SubParsersAction, name: str, text: str) -> Parser:
    """Add a command that trains. Its help needs the method, so it is made later."""
    command = commands.add_parser(name, help=text, description=text, add_help=False)
    command.add_argument("method", metavar="METHOD", nargs="?", help="see `rlx list`")
    add = command.add_argument
    add("-h", "--help", action="store_true", help="explain METHOD's fields as well")
    add("--env", metavar="NAME", help="an environment, see `rlx list`")
    add("--seeds", type=seeds, default=(0,), help="how many (8) or which (0,3); 1")
    add("--steps", type=steps, help="environment steps per run: 500k, 1M")
    for option, example in (
        ("set", "learning_rate=1e-3"),
        ("env-set", "reset_noise_scale=0.01"),
        ("source-set", "num_envs=64"),
    ):
        what = {"set": "METHOD", "env-set": "the environment"}.get(option, "the source")
        command.add_argument(
            f"--{option}",
            metavar="NAME=VALUE",
            nargs="+",
            action="extend",
            default=[],
            help=f"change a value of {what}, such as {example}",
        )
    add("--source", metavar="NAME", help="data source, if not the method's own")
    add("--out", metavar="DIR", help="run folder; runs/ENV_METHOD unless given")
    add("--resume", action="store_true", help="go on in DIR, or begin if it is missing")
    add("--evaluations", type=positive, default=20, help="during the run; 20")
    add("--episodes", type=positive, default=8, help="per evaluation and run; 8")
    add("--keep", type=positive, default=3, help="checkpoints kept; 3")
    add("--keep-going", action="store_true", help="go on while one run is finite")
    add("--write", metavar="WRITER", nargs="+", default=[], help="tensorboard, wandb")
    _distributed(command)
    command.set_defaults(grid=[])
    return command


def _distributed(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    text = "train in several processes, each started with this command"
    add("--distributed", action="store_true", help=text)
    text = "of process 0, where JAX recognises no cluster by itself"
    add("--coordinator", metavar="HOST:PORT", help=text)
    add("--processes", metavar="COUNT", type=positive, help="how many there are")
    add("--process", metavar="INDEX", type=int, help="which one this is, from 0")


def _train(commands: argparse._SubParsersAction) -> None:
    _experiment(commands, "train", "train a method: many seeds in one compiled program")


def _sweep(commands: argparse._SubParsersAction) -> None:
    text = "train over a grid of numbers: all settings and seeds in one program"
    command = _experiment(commands, "sweep", text)
    command.add_argument(
        "--grid",
        metavar="FIELD=A,B",
        nargs="+",
        action="extend",
        default=[],
        help="values to try, such as learning_rate=1e-4,3e-4; all combinations",
    )


def _run_command(
    commands: argparse._SubParsersAction, name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("run", metavar="RUN", help="a run folder")
    return command


def _resume(commands: argparse._SubParsersAction) -> None:
    command = _run_command(commands, "resume", "go on with a run that was stopped")
    command.add_argument(
        "--write", metavar="WRITER", nargs="+", default=[], help="tensorboard, wandb"
    )
    _distributed(command)


def _eval(commands: argparse._SubParsersAction) -> None:
    command = _run_command(commands, "eval", "evaluate the policies of a run anew")
    add = command.add_argument
    add("--episodes", type=positive, default=100, help="per seed; 100")
    add("--step", type=steps, help="checkpoint; the last unless given")
    add("--seed", type=int, default=0, help="of the evaluation's own randomness; 0")
    add("--sample", action="store_true", help="sample actions instead of the mode")
    add("--json", action="store_true", help="print every episode as JSON")


def _play(commands: argparse._SubParsersAction) -> None:
    text = "film an episode, as a GIF (or MP4) and a strip of pictures; or talk"
    command = _run_command(commands, "play", text)
    command.description = (
        "Film an episode, as a GIF (or MP4) and a strip of pictures. In a run on "
        "conversations nothing is filmed: you answer in the terminal."
    )
    add = command.add_argument
    add("--index", type=int, default=0, help="which run of several; 0")
    add("--step", type=steps, help="checkpoint; the last unless given")
    add("--seed", type=int, default=0, help="of the episode; 0")
    add("--max-steps", type=steps, help="end the episode here; its own limit")
    add("--seconds", type=float, default=10.0, help="longest film, 0: no limit; 10")
    add("--fps", type=positive, default=25, help="frames per second of the film; 25")
    add("--out", metavar="FILE", help=".gif or .mp4; RUN/episode.gif unless given")


def _plot(commands: argparse._SubParsersAction) -> None:
    text = "draw learning curves: one run, or several to compare"
    command = commands.add_parser("plot", help=text, description=text)
    add = command.add_argument
    add("run", metavar="RUN", nargs="+", help="run folders")
    add("--metric", default="return", help="what to draw; return")
    add("--out", metavar="FILE", help="RUN/curve.png, or curves.png for several")


def _style(commands: argparse._SubParsersAction) -> None:
    text = "rewrite a sentence in another style, by a trained rewriter"
    command = _run_command(commands, "style", text)
    add = command.add_argument
    add("sentence", metavar="SENTENCE", nargs="?", help="in quotes; none: list styles")
    add("--to", metavar="STYLE", help="the style to write in")
    add("--samples", type=positive, default=1, help="how many rewrites; 1")
    add("--seed", type=int, default=0, help="of the sampling; 0")
    add("--json", action="store_true", help="print them as JSON")


def _list(commands: argparse._SubParsersAction) -> None:
    text = "list methods, environments and data sources"
    command = commands.add_parser("list", help=text, description=text)
    command.add_argument(
        "what", nargs="?", choices=("methods", "envs", "sources"), help="one kind only"
    )
