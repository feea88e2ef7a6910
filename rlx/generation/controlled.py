"""A language model that is told by control words how good its text shall be."""

from __future__ import annotations

from typing import NamedTuple

from rlx.generation import engine, speakers
from rlx.generation.language_model import LanguageModel
from rlx.generation.sampling import Sampling
from rlx.generation.sparse import Sparse
from rlx.networks import transformer
from rlx.networks.transformer_controls import extended, with_controls
from rlx.ops.control_tokens import Controls
from rlx.types import Key, Params


class ControlledModel(NamedTuple):
    """What methods that learn from control words must know: their `spec`."""

    model: LanguageModel
    """Reads V + E words; its sampler says the first V alone."""
    controls: Controls
    """The E others."""


def decoder(
    config: transformer.Config,
    params: Params,
    controls: Controls,
    key: Key,
    options: Sampling | None = None,
    sparse: Sparse | None = None,
) -> ControlledModel:
    """A decoder that has learned before, with control words added.

    Args:
      config: of the decoder as it was, V words.
      params: as they were; copied.
      controls: the words to add.
      key: draws their embeddings.
      options: how responses are drawn; None: it cannot act.
      sparse: see `rlx.generation.language_model.decoder`.

    Raises:
      ValueError: `controls` follow another vocabulary than the config's.
    """
    if controls.num_words != config.vocabulary_size:
        raise ValueError(
            f"control words begin at {controls.num_words}, but the decoder has "
            f"{config.vocabulary_size} words: set Controls.num_words to that"
        )
    longer = extended(config, controls.size)
    speaks = None
    if options is not None:
        speaker = engine.speaker(longer, sparse)
        speaks = speakers.sampler(
            speakers.restricted(speaker, controls.num_words), options
        )
    start = with_controls(config, params, controls.size, key)
    return ControlledModel(
        LanguageModel(transformer.decoder(longer), speaks, start), controls
    )
