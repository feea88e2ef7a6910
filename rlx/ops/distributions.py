"""Action distributions: categorical, Gaussian, tanh-squashed Gaussian.

Each is a frozen record of arrays with pure methods. A record, because the parameters
of the behaviour policy travel with the batch (for KL penalties) and must pass through
`jit`, `vmap` and minibatching like any other array; methods, because policy code then
reads the same for every kind of action.

Shapes: parameters are `[..., A]`. The last axis is the event and is summed (or, for
`Categorical`, indexed); whatever precedes it is batch. Every distribution has

    sample(key), mode()              -> action
    log_prob(action)                 -> [...]
    entropy(key)                     -> [...]
    sample_and_log_prob(key)         -> Sample(action, log_prob, raw)
    log_prob_raw(raw)                -> [...]
    action_from_raw(raw)             -> action

`raw` is the action before squashing: store it, and `log_prob_raw` is exact where
`log_prob(action)` would have to invert a saturated tanh. It is the action itself for
the other distributions, so that one policy serves all three.

Keys: one key serves the whole batch. Samples are differentiable in the parameters
(Gaussians, reparameterised); nothing stops gradients.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rlx.ops.squashing import log_det_tanh
from rlx.ops.values import value_of_action
from rlx.types import Array, Key


class Sample(NamedTuple):
    """An action, what it was worth, and the form of it that loses nothing."""

    action: Array
    log_prob: Array
    """`[...]` equal to `log_prob_raw(raw)`."""
    raw: Array
    """The action before squashing; the action itself where nothing squashes."""


@struct.dataclass
class Categorical:
    """A choice among A actions, by unnormalised log-probabilities.

    A logit of −∞ forbids its action: probability 0, no contribution to entropy or KL,
    zero gradient. At least one logit must be finite.
    """

    logits: Array
    """`[..., A]`."""

    def sample(self, key: Key) -> Array:
        """Draws `int32[...]` in 0 … A−1."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Array:
        """The most probable action, `int32[...]`; the first of equals."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Array) -> Array:
        """The logarithm of softmax(logits)[action].

        Args:
          action: integer `[...]` in 0 … A−1; NaN comes back for one outside.

        Returns:
          `[...]` log-probabilities, ≤ 0.

        Raises:
          AssertionError: `action` is no integer, or its shape is not the batch shape.
        """
        return value_of_action(jax.nn.log_softmax(self.logits), action)

    def entropy(self, key: Key | None = None) -> Array:
        """−Σₐ p(a) log p(a) in nats, `[...]`; exact, the key is not used."""
        del key
        probs, log_probs = _probs_and_finite_logs(self.logits)
        return -jnp.sum(probs * log_probs, axis=-1)

    def sample_and_log_prob(self, key: Key) -> Sample:
        """Draws an action and its log-probability."""
        action = self.sample(key)
        return Sample(action, self.log_prob(action), action)

    def log_prob_raw(self, raw: Array) -> Array:
        """The same as `log_prob`: nothing is squashed."""
        return self.log_prob(raw)

    def action_from_raw(self, raw: Array) -> Array:
        """The same array: nothing is squashed."""
        return raw


@struct.dataclass
class DiagonalGaussian:
    """Independent normals N(mean, exp(log_scale)²), one per action dimension.

    Make it with `diagonal_gaussian` where `log_scale` is one free vector `[A]`.
    """

    mean: Array
    """`[..., A]` μ."""
    log_scale: Array
    """`[..., A]` log σ."""

    def sample(self, key: Key) -> Array:
        """Draws `[..., A]`: μ + σ ε."""
        return self.sample_and_log_prob(key).action

    def mode(self) -> Array:
        """The mean, `[..., A]`."""
        return self.mean

    def log_prob(self, action: Array) -> Array:
        """Σⱼ −½((aⱼ − μⱼ)/σⱼ)² − log σⱼ − ½ log 2π.

        Args:
          action: `[..., A]`.

        Returns:
          `[...]` log-densities.

        Raises:
          AssertionError: shapes differ.
        """
        chex.assert_equal_shape([action, self.mean, self.log_scale])
        noise = (action - self.mean) * jnp.exp(-self.log_scale)
        return self._log_prob_of_noise(noise)

    def entropy(self, key: Key | None = None) -> Array:
        """Σⱼ log σⱼ + ½ log 2πe in nats, `[...]`; exact, the key is not used."""
        del key
        chex.assert_equal_shape([self.mean, self.log_scale])
        return jnp.sum(self.log_scale + 0.5 * (math.log(2 * math.pi) + 1), axis=-1)

    def sample_and_log_prob(self, key: Key) -> Sample:
        """Draws an action and its log-density."""
        chex.assert_equal_shape([self.mean, self.log_scale])
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        action = self.mean + jnp.exp(self.log_scale) * noise
        return Sample(action, self._log_prob_of_noise(noise), action)

    def log_prob_raw(self, raw: Array) -> Array:
        """The same as `log_prob`: nothing is squashed."""
        return self.log_prob(raw)

    def action_from_raw(self, raw: Array) -> Array:
        """The same array: nothing is squashed."""
        return raw

    def _log_prob_of_noise(self, noise: Array) -> Array:
        constant = 0.5 * math.log(2 * math.pi)
        return jnp.sum(-0.5 * jnp.square(noise) - self.log_scale - constant, axis=-1)


@struct.dataclass
class TanhGaussian:
    """tanh of a diagonal Gaussian: actions inside (−1, 1).

    Haarnoja et al. 2018, https://arxiv.org/abs/1801.01290, appendix C. With
    a = tanh(x), x ~ N(μ, σ²):

        log p(a) = Σⱼ log N(xⱼ; μⱼ, σⱼ) − log(1 − tanh² xⱼ)
        log(1 − tanh² x) = 2(log 2 − x − softplus(−2x))

    The second form is exact for every x; 1 − a² rounds to 0 in float32 from |x| ≈ 9 on.
    Make it with `tanh_gaussian` where `log_scale` is one free vector `[A]`.
    """

    mean: Array
    """`[..., A]` μ, before the tanh."""
    log_scale: Array
    """`[..., A]` log σ, before the tanh."""

    @property
    def base(self) -> DiagonalGaussian:
        """The Gaussian before squashing."""
        return DiagonalGaussian(self.mean, self.log_scale)

    def sample(self, key: Key) -> Array:
        """Draws `[..., A]` in [−1, 1] (the bounds only by rounding)."""
        return self.sample_and_log_prob(key).action

    def mode(self) -> Array:
        """tanh(μ), `[..., A]`: the median, and what evaluation acts by.

        The density itself has no interior maximum once σ is large.
        """
        return jnp.tanh(self.mean)

    def log_prob(self, action: Array) -> Array:
        """The log-density of an action whose pre-tanh value was not kept.

        At or beyond a bound, |a| counts as 1 − 2⁻²³ (float32; |x| ≈ 8.3), with zero
        gradient in the action: finite, but not exact. Prefer `log_prob_raw`.

        Args:
          action: `[..., A]` in [−1, 1].

        Returns:
          `[...]` log-densities.

        Raises:
          AssertionError: shapes differ.
        """
        bound = 1 - float(jnp.finfo(action.dtype).eps)
        return self.log_prob_raw(jnp.arctanh(jnp.clip(action, -bound, bound)))

    def log_prob_raw(self, raw: Array) -> Array:
        """The log-density of tanh(raw), exactly.

        Args:
          raw: `[..., A]` before the tanh.

        Returns:
          `[...]` log-densities with respect to the action (not to raw).

        Raises:
          AssertionError: shapes differ.
        """
        return self.base.log_prob(raw) - log_det_tanh(raw)

    def action_from_raw(self, raw: Array) -> Array:
        """tanh(raw)."""
        return jnp.tanh(raw)

    def entropy(self, key: Key | None) -> Array:
        """An unbiased estimate from one antithetic pair, in nats, `[...]`.

        No closed form exists. With h(x) = Σⱼ log(1 − tanh² xⱼ) and ε ~ N(0, 1),

            H ≈ H(Gaussian) + ½ [h(μ + σε) + h(μ − σε)]

        Only the squashing is sampled, and the pair removes what is linear in ε: up to
        σ ≈ 1, this has less variance than −log p of one sample (wider scales need an
        average over states). It is differentiable in the parameters.

        Raises:
          ValueError: no key is given.
        """
        if key is None:
            raise ValueError("the entropy of a TanhGaussian is sampled: give a key")
        raw = self.base.sample(key)
        mirrored = 2 * self.mean - raw
        squashing = 0.5 * (log_det_tanh(raw) + log_det_tanh(mirrored))
        return self.base.entropy() + squashing

    def sample_and_log_prob(self, key: Key) -> Sample:
        """Draws an action, its log-density, and the pre-tanh value to keep."""
        raw, log_prob, _ = self.base.sample_and_log_prob(key)
        return Sample(jnp.tanh(raw), log_prob - log_det_tanh(raw), raw)


Distribution: TypeAlias = Categorical | DiagonalGaussian | TanhGaussian


def diagonal_gaussian(mean: Array, log_scale: Array) -> DiagonalGaussian:
    """A Gaussian with a free (`[A]`) or state-dependent (`[..., A]`) log-scale.

    Args:
      mean: `[..., A]`.
      log_scale: `[A]`, the same for the whole batch, or `[..., A]`.

    Returns:
      The record, with `log_scale` broadcast to the shape of `mean`, so that both
      fields share the batch axes.

    Raises:
      AssertionError: `log_scale` is neither `[A]` nor of the shape of `mean`.
    """
    return DiagonalGaussian(mean, _broadcast_log_scale(mean, log_scale))


def tanh_gaussian(mean: Array, log_scale: Array) -> TanhGaussian:
    """`diagonal_gaussian`, squashed; same arguments, same errors."""
    return TanhGaussian(mean, _broadcast_log_scale(mean, log_scale))


def kl_divergence(p: Distribution, q: Distribution) -> Array:
    """KL(p ‖ q) = E_p[log p − log q], in closed form.

        Categorical:  Σₐ p(a) (log p(a) − log q(a))
        Gaussian:     Σⱼ log(σ_q/σ_p) + (σ_p² + (μ_p − μ_q)²)/(2σ_q²) − ½
        TanhGaussian: that of the Gaussians, because tanh is a bijection

    An action that p forbids contributes 0; one that only q forbids makes it +∞.

    Args:
      p: distribution of parameters `[..., A]`; the expectation is under this one.
      q: distribution of the same kind and shape.

    Returns:
      `[...]` divergences in nats, ≥ 0.

    Raises:
      TypeError: the two are not of the same kind.
      AssertionError: shapes differ.
    """
    if isinstance(p, Categorical) and isinstance(q, Categorical):
        chex.assert_equal_shape([p.logits, q.logits])
        probs, log_p = _probs_and_finite_logs(p.logits)
        log_q = jnp.where(probs > 0, jax.nn.log_softmax(q.logits), 0)
        return jnp.sum(probs * (log_p - log_q), axis=-1)
    if isinstance(p, Categorical) or type(p) is not type(q):
        raise TypeError(
            "kl_divergence needs two distributions of one kind, got "
            f"{type(p).__name__} and {type(q).__name__}"
        )
    assert not isinstance(q, Categorical)
    chex.assert_equal_shape([p.mean, p.log_scale, q.mean, q.log_scale])
    log_ratio = p.log_scale - q.log_scale
    distance = (p.mean - q.mean) * jnp.exp(-q.log_scale)
    # ½(e²ʳ − 1) − r by expm1: no cancellation between nearly equal scales.
    terms = 0.5 * (jnp.expm1(2 * log_ratio) + jnp.square(distance)) - log_ratio
    return jnp.sum(terms, axis=-1)


def rescale_to_box(action: Array, minimum: object, maximum: object) -> Array:
    """Maps [−1, 1] linearly onto [minimum, maximum].

    The log-density of the rescaled action is lower by Σⱼ log((maxⱼ − minⱼ)/2), a
    constant that ratios, KL divergences and gradients do not see.

    Args:
      action: `[..., *shape]`, in [−1, 1] for the result to be inside the box.
      minimum: lower bound, a number or array-like of the box's `shape`.
      maximum: upper bound, likewise.

    Returns:
      `[..., *shape]` in the units of the environment.

    Raises:
      ValueError: a bound is infinite or NaN, or minimum ≥ maximum somewhere.
      AssertionError: the bounds do not match the trailing axes of `action`.
    """
    centre, half_width = _box(action, minimum, maximum)
    return centre + half_width * action


def rescale_from_box(action: Array, minimum: object, maximum: object) -> Array:
    """The inverse of `rescale_to_box`; same arguments, same errors."""
    centre, half_width = _box(action, minimum, maximum)
    return (action - centre) / half_width


def _probs_and_finite_logs(logits: Array) -> tuple[Array, Array]:
    """Probabilities, and their logarithms with 0 in place of log 0."""
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    # Replacing −∞ before the product keeps 0·∞ out of the gradient as well.
    return probs, jnp.where(probs > 0, log_probs, 0)


def _broadcast_log_scale(mean: Array, log_scale: Array) -> Array:
    if jnp.ndim(log_scale) == 1:
        chex.assert_axis_dimension(mean, -1, log_scale.shape[0])
        return jnp.broadcast_to(log_scale, mean.shape)
    chex.assert_equal_shape([mean, log_scale])
    return log_scale


def _box(action: Array, minimum: object, maximum: object) -> tuple[Array, Array]:
    """The centre and half-width of a box, broadcast to `action`."""
    low, high = (np.asarray(x, np.float64) for x in (minimum, maximum))
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
        raise ValueError(
            "actions can be rescaled to finite bounds only, got "
            f"[{minimum}, {maximum}]: use an unsquashed policy, or give bounds"
        )
    if not np.all(low < high):
        raise ValueError(f"bounds must satisfy minimum < maximum: {minimum}, {maximum}")
    for bound in (low, high):
        chex.assert_shape(bound, action.shape[action.ndim - bound.ndim :])
    centre, half_width = (
        jnp.broadcast_to(jnp.asarray(x, action.dtype), action.shape)
        for x in ((high + low) / 2, (high - low) / 2)
    )
    return centre, half_width
