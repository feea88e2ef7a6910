"""Controlled diffusions: the record, the mesh, the noise, and what is checked.

dX = b(t, X, a) dt + σ(t, X, a) dW with running reward r(t, X, a) per unit of time,
terminal reward h(X_T) and discount rate β. The setting is that of Jia & Zhou, "Policy
Evaluation and Temporal-Difference Learning in Continuous Time and Space: A Martingale
Approach", JMLR 23 (2022), https://arxiv.org/abs/2108.06655.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlx.types import Array, Key


def zero_reward(time: Array, state: Array, action: Array) -> Array:
    """A running reward of nothing."""
    del time, action
    return jnp.zeros((), state.dtype)


def zero_terminal(state: Array) -> Array:
    """A terminal reward of nothing."""
    return jnp.zeros((), state.dtype)


class Diffusion(NamedTuple):
    """A controlled diffusion with its rewards, as a record of pure functions.

    Functions of one state take `time []`, `state [d]` and `action [k]`; callers vmap.
    """

    name: str
    dimension: int
    """d, of the state."""
    drift: Callable[[Array, Array, Array], Array]
    """`b(time, state, action) -> [d]`, per unit of time."""
    volatility: Callable[[Array, Array, Array], Array]
    """`σ(time, state, action) -> [d, n]`."""
    initial: Callable[[Key], Array]
    """`(key) -> [d]`, the state at time 0."""
    reward: Callable[[Array, Array, Array], Array] = zero_reward
    """`r(time, state, action) -> []`, per unit of time."""
    terminal: Callable[[Array], Array] = zero_terminal
    """`h(state) -> []`, paid at the horizon; unused when the horizon is infinite."""
    horizon: float = math.inf
    """T; infinity for discounted and ergodic problems."""
    discount_rate: float = 0.0
    """β, per unit of time."""
    noise_dimension: int = 1
    """n, independent Brownian motions."""
    action_dimension: int = 0
    """k; 0 for an uncontrolled diffusion."""
    policy: Callable[[Array, Array, Key], tuple[Array, Array]] | None = None
    """`(time, state [..., d], key) -> (action [..., k], log_prob [...])`.

    The policy that `value` belongs to; one key serves all leading axes.
    """
    temperature: float = 0.0
    """γ: the reward rate gains -γ log π(a) under a stochastic policy."""
    exact: Callable[..., Array] | None = None
    """`(time, state, action, duration, noise [n]) -> state`, exact in law, if known."""
    value: Callable[[Array, Array], Array] | None = None
    """`J(time, state [d]) -> []` under `policy`, where a formula is known."""


def num_steps(horizon: float, step_size: float) -> int:
    """How many steps of `step_size` make up `horizon`.

    Raises:
      ValueError: not positive and finite, or the step does not divide the horizon.
    """
    for name, value in (("horizon", horizon), ("step_size", step_size)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    count = round(horizon / step_size)
    if count < 1 or abs(count * step_size - horizon) > 1e-9 * horizon:
        nearest = horizon / max(count, 1)
        raise ValueError(
            f"step_size={step_size} does not divide horizon={horizon}: "
            f"the nearest step that does is {nearest:.12g}"
        )
    return count


def mesh(horizon: float, step_size: float) -> Array:
    """The uniform mesh `[N + 1]` from 0 to `horizon` with steps of `step_size`.

    Raises:
      ValueError: not positive and finite, or the step does not divide the horizon.
    """
    return jnp.linspace(0.0, horizon, num_steps(horizon, step_size) + 1)


def brownian(key: Key, time: Array, shape: tuple[int, ...]) -> Array:
    """Brownian increments `[N, *shape]` on the mesh `time [N + 1]`.

    Built by midpoint displacement (Lévy's construction): with N = m 2^L and m odd, m
    increments are drawn first and every level halves each of them by a Brownian bridge.
    The same key on a mesh with twice the points is therefore *the same path, refined*:
    summing its increments in pairs gives the coarser ones. N standard normals are drawn
    in all, as many as without the construction.

    Args:
      key: a typed PRNG key.
      time: `[N + 1]` increasing mesh, any spacing.
      shape: trailing axes of independent motions.

    Returns:
      `[N, *shape]`, increment i has mean 0 and variance `time[i + 1] - time[i]`.
    """
    chex.assert_rank(time, 1)
    count = time.shape[0] - 1
    if count < 1:
        raise ValueError(f"a mesh needs at least 2 points, got {count + 1}")
    levels = (count & -count).bit_length() - 1

    def column(x: Array) -> Array:
        return x.reshape((-1,) + (1,) * len(shape))

    # One key per increment, in the order of the levels: a finer mesh only adds keys.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    normal = jax.vmap(lambda k: jax.random.normal(k, shape, time.dtype))(keys)
    stride = 1 << levels
    coarse = time[::stride]
    noise = column(jnp.sqrt(jnp.diff(coarse))) * normal[: count // stride]
    for _ in range(levels):
        stride //= 2
        fine = jnp.diff(time[::stride])
        left, right = fine[0::2], fine[1::2]
        total = left + right
        displacement = column(jnp.sqrt(left * right / total))
        drawn = normal[noise.shape[0] : 2 * noise.shape[0]]
        first = column(left / total) * noise + displacement * drawn
        noise = jnp.stack([first, noise - first], 1).reshape(-1, *shape)
    return noise


def coarsen(noise: Array, factor: int) -> Array:
    """Increments of a mesh `factor` times coarser: `[N, ...] -> [N / factor, ...]`.

    Raises:
      ValueError: `factor` does not divide N.
    """
    if noise.shape[0] % factor:
        raise ValueError(f"factor={factor} does not divide {noise.shape[0]} increments")
    return noise.reshape(-1, factor, *noise.shape[1:]).sum(1)


def require(problem: str, **parameters: float | np.ndarray) -> None:
    """Raises ValueError unless every parameter is finite."""
    for name, value in parameters.items():
        if not np.all(np.isfinite(np.asarray(value, float))):
            raise ValueError(f"{problem}: {name} must be finite, got {value}")


def require_positive(problem: str, **parameters: float) -> None:
    """Raises ValueError unless every parameter is positive and not NaN."""
    for name, value in parameters.items():
        if not value > 0:
            raise ValueError(f"{problem}: {name} must be positive, got {value}")


def check_coefficients(diffusion: Diffusion, time: float, state: Array) -> None:
    """Evaluates the coefficients at one state, on the host.

    Raises:
      ValueError: a coefficient has the wrong shape or is not finite there.
    """
    d, n = diffusion.dimension, diffusion.noise_dimension
    action = jnp.zeros((diffusion.action_dimension,), state.dtype)
    if diffusion.policy is not None:
        action = diffusion.policy(jnp.asarray(time), state, jax.random.key(0))[0]
    shapes = {"drift": (d,), "volatility": (d, n), "reward": ()}
    results = {name: getattr(diffusion, name)(time, state, action) for name in shapes}
    shapes["terminal"] = ()
    results["terminal"] = diffusion.terminal(state)
    for name, shape in shapes.items():
        result = np.asarray(results[name])
        if result.shape != shape:
            raise ValueError(
                f"{diffusion.name}: {name} must have shape {shape}, got {result.shape}"
            )
        if not np.all(np.isfinite(result)):
            raise ValueError(
                f"{diffusion.name}: {name} is not finite at time {time}, state "
                f"{np.asarray(state)}: got {result}; check its coefficients"
            )
