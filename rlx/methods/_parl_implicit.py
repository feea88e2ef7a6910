"""A-PARL's implicit term from few trajectories: where its noise and its bias come from.

The term is a product of three estimates, ∂²_{νθ}V (λF)⁻¹ ∂_θG. Taken from the same
trajectories, the score of each meets itself in the product, and what is left is mostly
each trajectory's own utility times its own reward: not the implicit term. So streams
are cut into halves: u = (λF + δI)⁻¹ ∂_θG of one half weighs the rewards of the other,
and the other way round. Chakraborty et al. 2024 (PARL) leave this open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rlx.methods import _parl
from rlx.ops import segments
from rlx.ops.segments import Where
from rlx.types import Array, Key, PyTree, Transition


class Estimate(Protocol):
    """The fields of a config that say how the term is estimated."""

    @property
    def segment_length(self) -> int: ...
    @property
    def solver(self) -> str: ...
    @property
    def solver_iterations(self) -> int: ...
    @property
    def damping(self) -> float: ...
    @property
    def centred(self) -> bool: ...
    @property
    def crossed(self) -> bool: ...


class Evidence(NamedTuple):
    """Pairs of segments of the policy's trajectories, and what they are worth."""

    where: Where
    utility: Array
    """`[N, 2]`, constants."""
    weight: Array
    """`[N]` 1 where a pair counts, else 0."""


def draw(config: Estimate, key: Key, experience: Transition, number: int) -> Where:
    """Places of pairs; where halves are crossed, both segments lie in one half.

    Args:
      config: whether halves are crossed.
      key: used once.
      experience: leaves `[T, B, ...]`.
      number: N, pairs.

    Raises:
      ValueError: too few streams or pairs for two halves, or as `segments.draw` says.
    """
    length, streams = config.segment_length, experience.reward.shape[1]
    if not config.crossed or config.solver == "none":
        return segments.draw(key, experience, number, length)
    if streams < 4 or number < 2:
        raise ValueError(
            "two halves of pairs need four streams and two pairs, got "
            f"{streams} and {number}: set num_envs to 4 or more and num_candidates and "
            "unlabelled_pairs to 2 or more, or crossed to False"
        )
    size, found = streams // 2, []
    plan = ((slice(0, size), number - number // 2), (slice(size, None), number // 2))
    for (part, count), own in zip(plan, jax.random.split(key, 2), strict=True):
        inside = jax.tree.map(lambda x, part=part: x[:, part], experience)
        where = segments.draw(own, inside, count, length)
        found.append(where.replace(stream=where.stream + (part.start or 0)))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *found)


def solution(
    config: Estimate, lower: _parl.Lower, evidence: Sequence[Evidence]
) -> _parl.Solution:
    """Weights of every reward, whose gradient is the implicit term.

    Args:
      config: how.
      lower: the policy and its trajectories.
      evidence: the utilities of ∂_θG are sums over these.
    """
    if not config.crossed or config.solver == "none":
        slope = _slope(config, lower, evidence)
        return _parl.implicit_weight(lower, *_how(config, slope), config.centred)
    size = lower.trajectories.first.shape[1] // 2
    halves = [_half(lower, evidence, part) for part in (slice(size), slice(size, None))]
    found = [
        _parl.implicit_weight(
            own, *_how(config, _slope(config, own, pairs)), config.centred, other
        )
        for (own, pairs), (other, _) in zip(halves, halves[::-1], strict=True)
    ]
    weights = [half.weight for half in found[::-1]]
    return _parl.Solution(
        weight=jnp.concatenate(weights, 1) / 2,
        residual=(found[0].residual + found[1].residual) / 2,
        slope_norm=(found[0].slope_norm + found[1].slope_norm) / 2,
    )


def _how(config: Estimate, slope: PyTree) -> tuple[PyTree, str, int, float]:
    return slope, config.solver, config.solver_iterations, config.damping


def _slope(
    config: Estimate, lower: _parl.Lower, evidence: Sequence[Evidence]
) -> PyTree:
    terms = [
        _parl.slope(lower, x.where, config.segment_length, x.utility, x.weight)
        for x in evidence
    ]
    return jax.tree.map(lambda *x: sum(x), *terms)


def _half(
    lower: _parl.Lower, evidence: Sequence[Evidence], part: slice
) -> tuple[_parl.Lower, list[Evidence]]:
    """Some of the streams, and the pairs that lie in them."""
    begin, stop, _ = part.indices(lower.trajectories.first.shape[1])
    seen = jax.tree.map(lambda x: x[:, part], lower.trajectories)
    pairs = []
    for own in evidence:
        stream = own.where.stream
        inside = jnp.all((stream >= begin) & (stream < stop), axis=1)
        stream = jnp.clip(stream - begin, 0, stop - begin - 1)
        weight = jnp.where(inside, own.weight, 0.0)
        pairs.append(Evidence(own.where.replace(stream=stream), own.utility, weight))
    return lower._replace(trajectories=seen), pairs
