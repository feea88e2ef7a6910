"""A trained rewriter of sentences, and the run folder that holds it whole.

    rewriter.save("runs/style", found)                # a model trained by STEER
    found = rewriter.load("runs/style")
    rewriter.rewrite(found, "Will you be patient?", "bible")
    ['wilt thou be patient?']

    runs/style/
      config.json       styles, lengths, the decoder's shape, how it is sampled
      tokenizer.json
      checkpoints/      the parameters

`rlx style RUN "a sentence" --to STYLE` does the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlx import checkpoint
from rlx.data import packing, style_corpus, styles, tokenizer
from rlx.data.tokenizer import Tokenizer
from rlx.files import RunFolderError
from rlx.generation import speakers
from rlx.generation.sampling import Sampler, Sampling
from rlx.networks import transformer
from rlx.networks.transformer_controls import extended
from rlx.ops.control_tokens import Controls, prepended
from rlx.record import RunFolder
from rlx.types import Params

KIND, TOKENIZER = "rewriter", "tokenizer.json"


class RewriteError(ValueError):
    """What was asked cannot be rewritten; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """All that is fixed of a rewriter."""

    styles: tuple[str, ...]
    source_length: int
    """Places of a prompt: the sentence's tokens, then BEGIN."""
    shape: transformer.Config
    """Of the decoder, without its control words."""
    sampling: Sampling
    num_metrics: int = 3
    num_bins: int = 5

    @property
    def controls(self) -> Controls:
        """The control words."""
        return Controls(
            self.shape.vocabulary_size,
            self.num_metrics,
            len(self.styles),
            self.num_bins,
        )

    def sampler(self) -> Sampler:
        """Speaks the words of the language alone."""
        speaker = speakers.of_decoder(extended(self.shape, self.controls.size))
        words = self.shape.vocabulary_size
        return speakers.sampler(speakers.restricted(speaker, words), self.sampling)


@dataclasses.dataclass(frozen=True)
class Rewriter:
    """A decoder that writes in the style that its control words name."""

    layout: Layout
    tokenizer: Tokenizer
    params: Params


def rewrite(
    rewriter: Rewriter, sentence: str, style: str, *, samples: int = 1, seed: int = 0
) -> list[str]:
    """Asks for the best sentences in a style.

    Args:
      rewriter: see there.
      sentence: any; it is brought to the spelling of `rlx.data.styles.plain` first.
      style: one of the rewriter's.
      samples: how many.
      seed: of the sampling.

    Raises:
      RewriteError: an unknown style (names those there are), an empty sentence, or one
        that is too long (says how much too long).
    """
    layout, words = rewriter.layout, rewriter.tokenizer
    if style not in layout.styles:
        near = difflib.get_close_matches(style, layout.styles, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RewriteError(
            f"unknown style {style!r}: this run knows {', '.join(layout.styles)}{hint}"
        )
    text = styles.plain(sentence)
    if not text:
        raise RewriteError("the sentence is empty: give one with at least a word")
    tokens = style_corpus.tokens_of(words, [text])[0]
    most = layout.source_length - 1
    if len(tokens) > most:
        raise RewriteError(
            f"the sentence is too long: it has {len(tokens)} tokens, this run reads "
            f"{most}; a token is a short word or part of one, so leave out about "
            f"{len(tokens) - most} words"
        )
    row = [*tokens, words.special(style_corpus.BEGIN)]
    prompt, mask = packing.left_padded([row], layout.source_length, words.pad)
    number = jnp.full((samples,), layout.styles.index(style), jnp.int32)
    asked = prepended(
        layout.controls.best(number),
        jnp.repeat(jnp.asarray(prompt), samples, axis=0),
        jnp.repeat(jnp.asarray(mask), samples, axis=0),
    )
    found = jax.jit(layout.sampler())(rewriter.params, *asked, jax.random.key(seed))
    return [
        style_corpus.text_of(words, row[there])
        for row, there in zip(*map(jax.device_get, (found.tokens, found.mask)))  # noqa: B905
    ]


def save(
    path: str | os.PathLike[str],
    rewriter: Rewriter,
    step: int = 0,
    **more: Any,
) -> Path:
    """Makes a run folder of a rewriter.

    Args:
      path: a folder that is missing or empty.
      rewriter: see there.
      step: gradient steps that it has learned.
      more: what `config.json` shall tell beside, JSON values.

    Raises:
      RunFolderError: something is there already, or the disk refuses.
    """
    told = {"kind": KIND, KIND: dataclasses.asdict(rewriter.layout), **more}
    with RunFolder.create(path, told) as folder:
        rewriter.tokenizer.save(folder.path / TOKENIZER)
        checkpoint.save(folder.checkpoints, step, rewriter.params)
    return Path(path)


def load(path: str | os.PathLike[str]) -> Rewriter:
    """Reads what `save` wrote.

    Raises:
      RunFolderError: no run folder, or one of another kind.
      LanguageDataError, CheckpointError: its files are damaged.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    if config.get("kind") != KIND:
        raise RunFolderError(
            f"{path}: is no run of a rewriter: `python -m experiments.steer.text` "
            "trains some"
        )
    layout = _layout(config[KIND])
    words = tokenizer.load(folder.path / TOKENIZER)
    shape = extended(layout.shape, layout.controls.size)
    like = jax.eval_shape(lambda: transformer.init(shape, jax.random.key(0)))
    return Rewriter(layout, words, checkpoint.load(folder.checkpoints, like))


def _layout(told: Mapping[str, Any]) -> Layout:
    sampling = dict(told["sampling"])
    sampling["stop_tokens"] = tuple(sampling["stop_tokens"])
    return Layout(
        **{
            **told,
            "styles": tuple(told["styles"]),
            "shape": transformer.Config(**told["shape"]),
            "sampling": Sampling(**sampling),
        }
    )
