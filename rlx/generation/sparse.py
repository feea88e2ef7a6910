"""How an engine reads its past: which heads, which pages, in how many bits.

Yang et al. 2025 (LServe), https://arxiv.org/abs/2502.14866. Defaults are the paper's.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeAlias

import numpy as np

from rlx.generation import heads as head_maps
from rlx.generation.heads import HeadMap
from rlx.networks import transformer
from rlx.ops import paged

BACKENDS = ("xla", "pallas")


@dataclasses.dataclass(frozen=True)
class Sparse:
    """Settings of the sparse engine; hashable, a constant of programs.

    `Sparse(budget=length)` with no head map reads everything: dense attention.

    Raises:
      ValueError: a number out of its range, or a budget that does not hold the pages
        that are always read.
    """

    heads: HeadMap | None = None
    """Which heads stream (`rlx.generation.calibration` finds out); None: none does."""
    page_size: int = 64
    """P, tokens of a physical page: what is read as one."""
    logical_size: int = 16
    """N, tokens of a logical page: what has a score. Divides P."""
    budget: int = 4096
    """Tokens that a retrieval head reads in a step; a multiple of P."""
    interval: int = 4
    """C, steps between two selections of pages."""
    sink_pages: int = 1
    """First pages that are read in every step; the authors' code forces none."""
    recent_pages: int = 1
    """Last pages that are read in every step; >= 1."""
    prefill_window: int | None = None
    """Window of streaming heads while a prompt is read; None: the head map's. The
    authors take 8192 there and 256 afterwards."""
    bits: int | None = None
    """8 or 4: keys and values of retrieval heads are kept in so many bits; None: as
    the network computes them. Streaming heads' short windows always are."""
    backend: str = "xla"
    """Or "pallas": kernels, for NVIDIA GPUs."""

    def __post_init__(self) -> None:
        for name in ("page_size", "logical_size", "budget", "interval", "recent_pages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.sink_pages < 0:
            raise ValueError(f"sink_pages must not be negative, got {self.sink_pages}")
        if self.page_size % self.logical_size:
            raise ValueError(
                f"logical_size={self.logical_size} does not divide "
                f"page_size={self.page_size}"
            )
        if self.budget % self.page_size:
            raise ValueError(
                f"budget={self.budget} is no multiple of page_size={self.page_size}"
            )
        kept = self.sink_pages + self.recent_pages + self.pages_ahead
        if self.budget_pages < kept:
            raise ValueError(
                f"budget={self.budget} tokens are {self.budget_pages} pages, but "
                f"{self.sink_pages} sink pages, {self.recent_pages} recent ones and "
                f"{self.pages_ahead} that interval={self.interval} may begin are "
                f"always read: give at least {kept * self.page_size}"
            )
        if self.bits is not None and self.bits not in paged.LEVELS:
            known = tuple(paged.LEVELS)
            raise ValueError(f"bits must be None or one of {known}, got {self.bits}")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {BACKENDS}, got {self.backend!r}")
        if self.prefill_window is not None and self.prefill_window < 1:
            raise ValueError(f"prefill_window={self.prefill_window} must be positive")

    @property
    def budget_pages(self) -> int:
        """Pages that a retrieval head reads."""
        return self.budget // self.page_size

    @property
    def pages_ahead(self) -> int:
        """Of these, pages that may begin before the next selection."""
        return paged.pages_ahead(self.interval, self.page_size)


Heads: TypeAlias = tuple[tuple[int, ...], ...]
"""Of each layer, some of its key-value heads."""


class Plan(NamedTuple):
    """A model and its settings: what each layer's heads do; hashable."""

    config: transformer.Config
    sparse: Sparse
    retrieval: Heads
    """Those that read pages."""
    streaming: Heads
    """Those that stream."""
    order: Heads
    """Where each head is among retrieval and then streaming ones."""
    sink: int
    window: int

    @property
    def group(self) -> int:
        """Query heads of a key-value head."""
        return self.config.num_heads // self.config.kv_heads


def plan(config: transformer.Config, sparse: Sparse) -> Plan:
    """Joins them.

    Raises:
      ValueError: the head map is of another model, or heads have an odd width and
        codes four bits.
    """
    heads = sparse.heads
    if heads is None:
        heads = head_maps.all_retrieval(config)
    head_maps.check(heads, config)
    if sparse.bits == 4 and config.head_size % 2:
        raise ValueError(f"4 bits need an even head width, got {config.head_size}")
    kinds = [np.array(row) for row in heads.retrieval]
    retrieval = tuple(_integers(np.flatnonzero(kind)) for kind in kinds)
    streaming = tuple(_integers(np.flatnonzero(~kind)) for kind in kinds)
    order = tuple(
        _integers(np.argsort(read + streamed))
        for read, streamed in zip(retrieval, streaming, strict=True)
    )
    return Plan(config, sparse, retrieval, streaming, order, heads.sink, heads.window)


def _integers(x: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in x)
