"""Several processes that train as one, each with `rlx train ... --distributed`."""

from __future__ import annotations

from typing import Any

import jax

from rlx.cli.errors import UsageError


def join(arguments: Any) -> None:
    """Join the other processes, where the command line asks for it.

    Must come before anything is computed. On a cluster that JAX knows (Slurm, Open MPI,
    TPU pods, ...) it finds everything by itself.

    Raises:
      UsageError: nobody says which processes, or they cannot be reached.
    """
    where = (arguments.coordinator, arguments.processes, arguments.process)
    if not arguments.distributed and where == (None, None, None):
        return
    try:
        jax.distributed.initialize(*where)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip(". ")
        raise UsageError(
            f"cannot join other processes ({reason}): where JAX finds no cluster by "
            "itself give each of them --coordinator HOST:PORT (of process 0; or set "
            "JAX_COORDINATOR_ADDRESS), --processes COUNT and --process INDEX"
        ) from error


def is_first() -> bool:
    """Whether this process speaks for all: one prints, draws and writes."""
    return jax.process_index() == 0
