"""Prompts: what a language policy is asked, and what it answers now.

`load` reads them, `respond` is a `DataSource` whose batches are fresh responses of the
policy that learns, scored if a score is given; the policy is given `samples` in its
observation and answers each prompt so many times. For prompts alone, without responses,
`rlx.data.language.draw` serves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlx.data import jsonl, packing
from rlx.data.language import Sequences, joined
from rlx.data.packing import Report
from rlx.data.tokenizer import Tokenizer
from rlx.types import Array, DataSource, Key, Metrics, Policy, PyTree


@struct.dataclass
class Prompts:
    """Prompts, padded on the left."""

    tokens: Array
    """`int32[..., L]`."""
    mask: Array
    """`bool[..., L]`."""


@struct.dataclass
class Responses:
    """What the policy answered: K answers to each of B prompts."""

    sequences: Sequences
    """`[B, K, L + T]` prompt and response."""
    log_prob: Array
    """`float32[B, K, L + T]` as the sampler returned it, 0 off the response."""
    score: Array
    """`float32[B, K]` what the score said, a constant; 0 without one."""
    prompt: Array
    """`int32[B]` which prompt it was."""


def load(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    length: int,
    drop: bool = False,
) -> tuple[Prompts, Report]:
    """The field `prompt` of each line, as arrays `[N, length]`, padded on the left.

    Args:
      path: JSON lines.
      tokenizer: see there.
      length: L.
      drop: leave out empty prompts and those that are too long.

    Raises:
      rlx.data.jsonl.LanguageDataError: a line is malformed or at fault, by its number;
        or nothing is left.
    """
    rows = jsonl.numbered(path, ("prompt",))
    report, kept = Report(len(rows)), []
    encoded = tokenizer.encode_all([row["prompt"] for _, row in rows])
    for (line, _), tokens in zip(rows, encoded, strict=True):
        if not tokens:
            report.drop(packing.EMPTY_PROMPT, line)
        elif len(tokens) > length:
            report.drop(packing.LONG_PROMPT, line)
        else:
            kept.append(tokens)
    report.kept = len(kept)
    packing.require_sound(report, str(path), drop=drop)
    packed: Any = packing.left_padded(kept, length, tokenizer.pad)
    return Prompts(*packed), report


def respond(
    prompts: Prompts,
    *,
    batch_size: int,
    samples: int = 1,
    score: Callable[[Sequences], Array] | None = None,
) -> DataSource:
    """Batches of `Responses`: B prompts at random, K answers of the policy to each.

    Args:
      prompts: `[N, L]`.
      batch_size: B.
      samples: K.
      score: `(Sequences [B K, L + T]) -> [B K]`, such as a reward model; its gradient
        is never taken.

    Raises:
      ValueError: no prompts, or a size is not positive.
    """
    count = len(prompts.tokens)
    if min(batch_size, samples, count) < 1:
        raise ValueError(
            f"batch_size={batch_size}, samples={samples} and the number of prompts "
            f"({count}) must be positive"
        )
    lead = (batch_size, samples)

    def over(arrays: Prompts) -> DataSource:
        def following(
            state: PyTree, policy: Policy, key: Key
        ) -> tuple[PyTree, Responses, Metrics]:
            choice_key, answer_key = jax.random.split(key)
            chosen = jax.random.randint(choice_key, (batch_size,), 0, count)
            prompt = Prompts(arrays.tokens[chosen], arrays.mask[chosen])
            observation = {
                "tokens": prompt.tokens,
                "mask": prompt.mask,
                "samples": samples,
            }
            answer, _, extras = policy.act(observation, (), answer_key)
            said = {**answer, "log_prob": extras["log_prob"]}
            said = {k: x.reshape(-1, x.shape[-1]) for k, x in said.items()}
            tokens, mask = (
                jnp.repeat(x, samples, axis=0) for x in (prompt.tokens, prompt.mask)
            )
            rows = joined(tokens, mask, said["tokens"], said["mask"])
            value = jnp.zeros(tokens.shape[:1], jnp.float32)
            if score is not None:
                value = jax.lax.stop_gradient(score(rows)).astype(jnp.float32)
            before = jnp.pad(said["log_prob"], ((0, 0), (tokens.shape[1], 0)))
            whole = (rows, before, value)
            rows, before, value = jax.tree.map(
                lambda x: x.reshape(*lead, *x.shape[1:]), whole
            )
            metrics = {
                "score": jnp.mean(value),
                "response_length": jnp.mean(jnp.sum(rows.response, axis=-1)),
            }
            return state, Responses(rows, before, value, chosen), metrics

        return DataSource(
            init=lambda key, policy: (), next=following, arrays=arrays, over=over
        )

    return over(jax.tree.map(jnp.asarray, prompts))
