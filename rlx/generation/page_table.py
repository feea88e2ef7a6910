"""Which page of a pool is which page of a row: sharing and giving out.

Kwon et al. 2023 (PagedAttention), https://arxiv.org/abs/2309.06180: a table maps the
pages of a row to pages of a pool, so that rows may have any length and the answers to
one prompt share its pages.

Shapes: J pages of a row, M free pages.
"""

from __future__ import annotations

from typing import TypeVar

import jax.numpy as jnp

from rlx.generation.sparse import Plan
from rlx.types import Array

NOWHERE = 2**30
"""A page of no pool: what is written there is dropped."""
Count = TypeVar("Count", int, Array)
"""One number, or `int32[...]`."""


def pages_for(tokens: Count, plan: Plan) -> Count:
    """Pages that so many tokens fill."""
    return -(-tokens // plan.sparse.page_size)


def shares(plan: Plan, length: Count, room: int, samples: int) -> tuple[Count, Count]:
    """Pages that a prompt's answers share, and pages that each has for itself.

    Whole pages of the prompt are shared; the page in which it ends and those of the
    answer are not.

    Args:
      plan: of the engine.
      length: of the prompt.
      room: tokens that an answer may add.
      samples: answers.

    Returns:
      Two counts; a prompt needs the first plus `samples` times the second.
    """
    shared = 0 if samples == 1 else 1
    whole = shared * (length // plan.sparse.page_size)
    return whole, pages_for(length + room, plan) - whole


def allot(
    plan: Plan, free: Array, length: Array, room: int, samples: int, columns: int
) -> Array:
    """A table for the answers to one prompt, out of free pages.

    Args:
      plan: of the engine.
      free: `int32[M]` free pages of the pool, as many as needed or more.
      length: `int32[]` of the prompt.
      room: tokens that an answer may add.
      samples: answers.
      columns: J.

    Returns:
      `int32[samples, J]`; 2^30 where a row has no page.
    """
    whole, own = shares(plan, length, room, samples)
    page = jnp.arange(columns, dtype=jnp.int32)[None]
    row = jnp.arange(samples, dtype=jnp.int32)[:, None]
    index = jnp.where(page < whole, page, whole + row * own + page - whole)
    found = free[jnp.minimum(index, free.shape[0] - 1)]
    return jnp.where(page < whole + own, found, NOWHERE)
