"""What a method must know of a language model: the `spec` of language methods."""

from __future__ import annotations

from typing import NamedTuple

from rlx.generation import engine, speakers
from rlx.generation.sampling import Sampler, Sampling
from rlx.generation.sparse import Sparse
from rlx.networks import transformer
from rlx.types import Network, Params


class LanguageModel(NamedTuple):
    """A network over tokens, how it speaks, and where learning starts."""

    network: Network
    """`apply(params, tokens int[B, S], mask=bool[B, S]) -> float32[B, S, V]`."""
    sampler: Sampler | None = None
    """How responses are drawn; None: the method cannot act."""
    reference: Params | None = None
    """Where learning starts and, for methods that have one, the frozen reference;
    None: fresh parameters from the run's key. What is given is copied, never shared."""


def decoder(
    config: transformer.Config,
    options: Sampling | None = None,
    reference: Params | None = None,
    sparse: Sparse | None = None,
) -> LanguageModel:
    """A decoder-only transformer and its sampler.

    Args:
      config: its shape.
      options: how responses are drawn; None: it cannot act.
      reference: parameters to start from.
      sparse: responses are drawn by the engine that reads a part of its past
        (`rlx.generation.engine`); learning is over the dense network all the same.
        None: by the dense sampler.
    """
    speaks = None
    if options is not None:
        speaks = speakers.sampler(engine.speaker(config, sparse), options)
    return LanguageModel(transformer.decoder(config), speaks, reference)
