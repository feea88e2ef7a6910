"""The Tsallis logarithm: the family of entropies around Shannon's."""

from __future__ import annotations

import math

import chex
import jax.numpy as jnp

from rlx.types import Array


def tsallis_log(log_x: Array, q: float | Array) -> Array:
    """The q-logarithm, from a natural logarithm: log_q(x) = (x^{1−q} − 1)/(1 − q).

    Tsallis 1988, https://doi.org/10.1007/BF01016429. q = 1 is the natural logarithm
    (as a limit, with its gradient); q = 0 is x − 1; q = 2 is 1 − 1/x.

    Args:
      log_x: `[...]` log x; −∞ is x = 0. Logarithms, so that densities of many
        dimensions do not underflow on the way in.
      q: scalar, may be traced.

    Returns:
      `[...]` log_q(x).

    Raises:
      AssertionError: q is no scalar.
    """
    chex.assert_rank(q, 0)
    power = 1 - jnp.asarray(q, log_x.dtype)
    exponent = power * log_x
    # (eʸ − 1)/power cancels, in its gradient too, near y = 0: a series serves there.
    is_far = jnp.abs(exponent) > 0.1
    near = jnp.where(is_far | jnp.isnan(exponent), 0, exponent)
    series = sum(near**k / math.factorial(k + 1) for k in range(9))
    far = jnp.expm1(jnp.where(is_far, exponent, 1)) / jnp.where(power == 0, 1, power)
    return jnp.where(is_far, far, log_x * series)
