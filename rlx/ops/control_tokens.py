"""Rewards as words: quantile bins, and the control tokens that name them.

Lu et al. 2022 (Quark), https://arxiv.org/abs/2205.13636: rewards are sorted, cut into K
bins of equal size, and a token that names the bin is put before the text. Hallinan et
al. 2023 (STEER), https://arxiv.org/abs/2311.07167: a vector of rewards gets a token
each, and each token names the style as well.

    controls = Controls(num_words=200, num_metrics=3, num_styles=4, num_bins=5)
    bins = assign_bins(metrics, style, there, num_groups=4, num_bins=5)    # [N, 3]
    tokens = controls.tokens(style, bins)                                  # [N, 3]
    prompt, mask = prepended(tokens, prompt, mask)

N rows, M metrics, S styles, K bins, V words of the language.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.ops.sequences import Sequences
from rlx.types import Array


@dataclasses.dataclass(frozen=True)
class Controls:
    """The words that name rewards: M S K of them, after the V of the language.

    The word for bin b of metric k and style s is V + (k S + s) K + b: it says style,
    metric and level at once, and there is no other word for a style.

    Raises:
      ValueError: a number is not positive.
    """

    num_words: int
    """V."""
    num_metrics: int = 3
    """M."""
    num_styles: int = 1
    """S."""
    num_bins: int = 5
    """K; five in both papers."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def size(self) -> int:
        """E, how many control words there are."""
        return self.num_metrics * self.num_styles * self.num_bins

    @property
    def vocabulary_size(self) -> int:
        """V + E."""
        return self.num_words + self.size

    def tokens(self, style: Array, bins: Array) -> Array:
        """The words `int32[..., M]` for styles `int[...]` and bins `int[..., M]`.

        Raises:
          AssertionError: shapes do not fit.
        """
        chex.assert_type([style, bins], int)
        chex.assert_shape(bins, (*style.shape, self.num_metrics))
        metric = jax.lax.broadcasted_iota(jnp.int32, bins.shape, bins.ndim - 1)
        place = metric * self.num_styles + style[..., None]
        return (self.num_words + place * self.num_bins + bins).astype(jnp.int32)

    def read(self, tokens: Array) -> tuple[Array, Array, Array]:
        """Metric, style and bin `int32[...]` of control words `int[...]`."""
        chex.assert_type(tokens, int)
        place, level = jnp.divmod(tokens - self.num_words, self.num_bins)
        metric, style = jnp.divmod(place, self.num_styles)
        return metric, style, level

    def best(self, style: Array) -> Array:
        """The words `int32[..., M]` that ask for the best of everything."""
        shape = (*style.shape, self.num_metrics)
        return self.tokens(style, jnp.full(shape, self.num_bins - 1, jnp.int32))


@struct.dataclass
class Rated:
    """Texts with the styles that they were written for, and their rewards."""

    sequences: Sequences
    """`[..., L + T]` prompt and response, without control words."""
    style: Array
    """`int32[...]` the style that was asked for."""
    metrics: Array
    """`float32[..., M]`, more is better."""


@struct.dataclass
class Controlled:
    """Texts, and control words that tell how good they are: a batch to learn from."""

    sequences: Sequences
    """`[B, L + T]` without the control words."""
    controls: Array
    """`int32[B, M]`."""
    metrics: Array
    """`float32[B, M]` what the words were made from; NaN where a reward was none, so
    that a run stops."""


def prepended(tokens: Array, row: Array, mask: Array) -> tuple[Array, Array]:
    """Control words `[..., M]` before rows `[..., L]`: `[..., M + L]`, and their mask.

    Padding may stand between: nobody sees it and it takes no position.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape([row, mask])
    chex.assert_equal_shape_prefix([tokens, row], row.ndim - 1)
    there = jnp.ones(tokens.shape, bool)
    joined = jnp.concatenate([tokens.astype(row.dtype), row], axis=-1)
    return joined, jnp.concatenate([there, mask], axis=-1)


def assign_bins(
    values: Array,
    group: Array,
    there: Array,
    *,
    num_groups: int,
    num_bins: int,
    ties: str = "order",
) -> Array:
    """Which K-quantile of its group and metric each row lies in.

        bin = ⌊K rank / n⌋,   rank 0 … n − 1 among the n rows of the group

    0 is worst. Where all of a group have the same value, which says nothing, all lie
    in the middle bin ⌊K / 2⌋. Groups of fewer than K rows leave bins empty.

    Args:
      values: `float[N, M]`.
      group: `int[N]` in 0 … num_groups − 1, such as a style.
      there: `bool[N]`; other rows influence nothing and get bin 0.
      num_groups: S.
      num_bins: K.
      ties: "order": of equal values the first has the lower rank, so that bins are
        equally large, give or take one; "together": equal values share the rank in
        their middle, so that equal rewards have equal names.

    Returns:
      `int32[N, M]`.

    Raises:
      AssertionError: shapes differ.
      ValueError: an unknown way with ties.
    """
    chex.assert_rank([values, group, there], [2, 1, 1])
    chex.assert_equal_shape_prefix([values, group, there], 1)
    chex.assert_type([values, group], [float, int])
    if ties not in ("order", "together"):
        raise ValueError(f'ties must be "order" or "together", got {ties!r}')
    group = jnp.where(there, group, num_groups).astype(jnp.int32)
    count = jnp.bincount(group, length=num_groups + 1)
    first = jnp.cumsum(count) - count

    def one(value: Array) -> Array:
        value = jnp.where(there, value, 0.0)
        order = jnp.lexsort((value, group))
        place = jnp.argsort(order)
        low = jax.ops.segment_min(value, group, num_groups + 1)
        high = jax.ops.segment_max(value, group, num_groups + 1)
        # Twice the rank, so that the middle of a tie is whole.
        twice = 2 * (jnp.arange(len(value)) - first[group[order]])
        if ties == "together":
            twice = _shared(value[order], group[order], twice)
        found = num_bins * twice[place] // (2 * jnp.maximum(count[group], 1))
        return jnp.where((low == high)[group], num_bins // 2, found)

    found = jax.vmap(one, in_axes=1, out_axes=1)(values)
    return jnp.where(there[:, None], found, 0).astype(jnp.int32)


def _shared(value: Array, group: Array, rank: Array) -> Array:
    """Ranks of sorted rows, the same for equal ones: the mean of first and last."""
    new = (value[1:] != value[:-1]) | (group[1:] != group[:-1])
    run = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new)])
    low = jax.ops.segment_min(rank, run, len(value))
    high = jax.ops.segment_max(rank, run, len(value))
    return ((low + high) // 2)[run]
