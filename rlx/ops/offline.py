"""What methods for fixed datasets share: advantage weights, soft maxima, overlaps."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

from rlx.ops.distributions import DiagonalGaussian
from rlx.types import Array


def advantage_weight(
    advantage: Array, inverse_temperature: float | Array, maximum: float | Array
) -> Array:
    """The weight of an action in advantage-weighted regression, clipped.

    Peng et al. 2019, https://arxiv.org/abs/1910.00177, eq. 4 and section 3.3:

        w = min(exp(β A), w_max)

    Regression on data weighted like this has the solution π ∝ π_β w: the policy that
    improves on the behaviour policy π_β under a bound on the KL divergence.

    Args:
      advantage: `[...]` A(s, a).
      inverse_temperature: β >= 0, scalar; 0 is behaviour cloning.
      maximum: w_max > 0, scalar; never overflows, whatever the advantage.

    Returns:
      `[...]` weights in [0, w_max], constants of the gradient.

    Raises:
      AssertionError: the advantage holds no floats, or β or w_max is no scalar.
    """
    chex.assert_type(advantage, float)
    chex.assert_rank([inverse_temperature, maximum], 0)
    exponent = jnp.minimum(inverse_temperature * advantage, jnp.log(maximum))
    return jax.lax.stop_gradient(jnp.exp(exponent))


def normalized_advantage_weight(
    advantage: Array, inverse_temperature: float | Array
) -> Array:
    """Advantage weights that average to one over the batch.

    What the authors of AWAC compute (Nair et al. 2020,
    https://arxiv.org/abs/2006.09359):

        wᵢ = n exp(β Aᵢ) / Σⱼ exp(β Aⱼ)

    A function of the whole set: adding a constant to all advantages changes nothing.

    Args:
      advantage: `[...]` A(s, a); all axes are the batch, of n elements.
      inverse_temperature: β >= 0, scalar; 0 is behaviour cloning.

    Returns:
      `[...]` weights in [0, n], constants of the gradient.

    Raises:
      AssertionError: the advantage holds no floats, or β is no scalar.
    """
    chex.assert_type(advantage, float)
    chex.assert_rank(inverse_temperature, 0)
    weight = jax.nn.softmax(inverse_temperature * advantage, axis=None)
    return jax.lax.stop_gradient(advantage.size * weight)


def log_integral_exp(
    action_value: Array, log_proposal: Array, temperature: float | Array = 1.0
) -> Array:
    """The soft maximum over actions, by importance sampling.

    Kumar et al. 2020 (CQL), https://arxiv.org/abs/2006.04779, appendix F:

        T log ∫ exp(Q(s, a)/T) da ≈ T log (1/N) Σᵢ exp(Q(s, aᵢ)/T) / q(aᵢ),  aᵢ ~ q

    Each action may have a proposal q of its own. The mean inside the logarithm is
    unbiased; the logarithm is too small on average (Jensen), less with more actions.

    Args:
      action_value: `[..., N]` Q(s, aᵢ).
      log_proposal: `[..., N]` log q(aᵢ), a constant of the gradient.
      temperature: T > 0, scalar.

    Returns:
      `[...]` soft maxima; the gradient in Q is the self-normalised weights.

    Raises:
      AssertionError: shapes differ, one holds no floats, or T is no scalar.
    """
    chex.assert_equal_shape([action_value, log_proposal])
    chex.assert_type([action_value, log_proposal], float)
    chex.assert_rank(temperature, 0)
    logits = action_value / temperature - jax.lax.stop_gradient(log_proposal)
    count = math.log(action_value.shape[-1])
    return temperature * (jax.nn.logsumexp(logits, axis=-1) - count)


def gaussian_overlap(first: DiagonalGaussian, second: DiagonalGaussian) -> Array:
    """The Bhattacharyya coefficient ∫ √(p q) of two Gaussians, in (0, 1].

    Bhattacharyya 1943; 1 minus it is the squared Hellinger distance. With D the sum
    over dimensions,

        exp(−D),  D = (μ₁ − μ₂)² / (4 (σ₁² + σ₂²)) + ½ log((σ₁² + σ₂²) / (2 σ₁ σ₂))

    Bounded with bounded gradients, unlike the KL divergence.

    Args:
      first: distribution of parameters `[..., A]`.
      second: of the same shape.

    Returns:
      `[...]`; 1 where they are equal.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape(
        [first.mean, first.log_scale, second.mean, second.log_scale]
    )
    # log((σ₁² + σ₂²) / 2σ₁σ₂) = log cosh(log σ₁ − log σ₂), without a quotient of
    # squares that could vanish.
    ratio = first.log_scale - second.log_scale
    spread = jnp.logaddexp(ratio, -ratio) - math.log(2)
    total = jnp.logaddexp(2 * first.log_scale, 2 * second.log_scale)
    distance = 0.25 * jnp.square((first.mean - second.mean) * jnp.exp(-0.5 * total))
    return jnp.exp(-jnp.sum(distance + 0.5 * spread, axis=-1))


def gaussian_error(mean: Array, log_variance: Array, target: Array) -> Array:
    """Twice the negative log-likelihood of a Gaussian, without its constant.

    Chua et al. 2018, https://arxiv.org/abs/1805.12114, eq. 1:

        (y − μ)² exp(−log σ²) + log σ²

    At a given μ it is smallest where σ² is the mean squared residual.

    Args:
      mean: `[...]` μ.
      log_variance: `[...]` log σ².
      target: `[...]` y, a constant of the gradient.

    Returns:
      `[...]` losses.

    Raises:
      AssertionError: shapes differ.
    """
    chex.assert_equal_shape([mean, log_variance, target])
    residual = jax.lax.stop_gradient(target) - mean
    return jnp.square(residual) * jnp.exp(-log_variance) + log_variance


def soft_clamp(x: Array, minimum: Array, maximum: Array) -> Array:
    """A clamp whose gradient never vanishes, with bounds that can be learned.

    Chua et al. 2018, https://arxiv.org/abs/1805.12114, appendix A.1: first
    max − softplus(max − x), then min + softplus(· − min).

    Args:
      x: `[...]`.
      minimum: lower bound, of a shape that broadcasts to that of x.
      maximum: upper bound, likewise, above the lower.

    Returns:
      `[...]`, above the minimum; it may exceed the maximum by less than
      log(1 + exp(minimum − maximum)).
    """
    minimum, maximum = (
        jnp.broadcast_to(bound, x.shape) for bound in (minimum, maximum)
    )
    below = maximum - jax.nn.softplus(maximum - x)
    return minimum + jax.nn.softplus(below - minimum)
