"""The `rlx` command.

Commands import what they need when they run, so that `rlx --help` is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from rlx.cli import arguments as arguments_lib
from rlx.cli.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status.

    0: it worked. 1: it failed on the way. 2: the command line asks for something that
    there is not. 130 or 143: stopped by Ctrl-C or SIGTERM, state saved.
    """
    try:
        arguments = arguments_lib.parser().parse_args(argv)
        return _command(arguments)
    except UsageError as error:
        return _fail(error, 2)
    except KeyboardInterrupt as error:
        text = str(error) or "stopped before anything was learned"
        print(f"\nrlx: {text}", file=sys.stderr)
        return 128 + getattr(error, "signum", 2)
    except BrokenPipeError:  # `rlx list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        return _fail(error, 1)


def _fail(error: Exception, status: int) -> int:
    if os.environ.get("RLX_DEBUG"):
        raise error
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"rlx: {message}", file=sys.stderr)
    return status


def _command(arguments: Any) -> int:
    command = arguments.command
    if command in ("train", "sweep"):
        if arguments.help or arguments.method is None:
            return _explain(arguments)
        from rlx.cli import training

        return training.run(arguments)
    if command == "resume":
        from rlx.cli import training

        return training.resume(arguments)
    if command in ("eval", "play", "plot"):
        from rlx.cli import saved

        return getattr(saved, command + "_run")(arguments)
    if command == "style":
        from rlx.cli import style

        return style.style_run(arguments)
    if command == "data":
        from rlx.cli import data

        return data.data_run(arguments)
    from rlx.cli import survey

    return getattr(survey, command + "_all")(arguments)


def _explain(arguments: Any) -> int:
    """Print the help of `train` or `sweep`, with the fields of a method if named."""
    top = arguments_lib.parser()
    commands = next(action for action in top._actions if action.dest == "command")
    print(commands.choices[arguments.command].format_help())  # type: ignore[index]
    if arguments.method is None:
        if not arguments.help:
            raise UsageError(f"which method? rlx {arguments.command} METHOD --env NAME")
        return 0
    from rlx.cli import explain

    print(explain.method(arguments.method, arguments.source))
    return 0
