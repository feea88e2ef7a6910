"""Speaking by a product of experts, see `rlx.ops.experts`.

    speaks = sampler(
        product(of_decoder(config), unprompted(of_table, BEGIN), strength=0.4),
        Sampling(max_tokens=20, stop_tokens=(END,)),
    )
    found = speaks(Parts(params, (tables, style)), prompt, mask, key)
    found.log_prob                      # under the product: what was sampled from

Base, expert and anti-expert are any speakers of the same words: decoders with their
caches, tables of bigrams, in any mixture. The base reads the prompt. Experts of a style
model texts, not answers: wrap them in `unprompted`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from rlx.generation.speakers import Reading, Speaker
from rlx.ops import experts
from rlx.types import Array, Params, PyTree

STRENGTH, NUCLEUS = 0.4, 0.6
"""Hallinan et al. 2023's code, its default a and p."""


class Parts(NamedTuple):
    """Parameters of a product."""

    base: Params
    expert: Params
    anti_expert: Params = ()


def product(
    base: Speaker,
    expert: Speaker,
    anti_expert: Speaker | None = None,
    *,
    strength: float | Array = STRENGTH,
    nucleus: float | Array = NUCLEUS,
) -> Speaker:
    """P_base, cut to its nucleus, times (P_expert / P_anti)^a. Parameters are `Parts`.

    Args:
      base: reads the prompt and proposes.
      expert: is asked for.
      anti_expert: is avoided; None: nobody is.
      strength: a, scalar or `[B]`.
      nucleus: p in (0, 1] of the base.

    Raises (when it reads):
      AssertionError: their words are not equally many.
    """

    def read(
        params: Parts, prompt: Array, mask: Array, max_tokens: int, samples: int = 1
    ) -> Reading:
        speakers = (
            (base, expert) if anti_expert is None else (base, expert, anti_expert)
        )
        readings = [
            speaker(own, prompt, mask, max_tokens, samples)
            for speaker, own in zip(speakers, params, strict=False)
        ]

        rows = strength if jnp.ndim(strength) == 0 else jnp.repeat(strength, samples)

        def joined(logits: list[Array]) -> Array:
            return experts.product(*logits, strength=rows, nucleus=nucleus)

        def extend(state: PyTree, token: Array, alive: Array) -> tuple[Array, PyTree]:
            found = [
                reading.extend(own, token, alive)
                for reading, own in zip(readings, state, strict=True)
            ]
            return joined([x for x, _ in found]), tuple(after for _, after in found)

        state = tuple(reading.state for reading in readings)
        return Reading(joined([x.logits for x in readings]), state, extend)

    return read
