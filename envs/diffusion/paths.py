"""Whole paths of a diffusion, by Euler-Maruyama, Milstein or its exact transition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.diffusion.core import Diffusion, brownian, check_coefficients
from rlx.types import Array, Key, Transition

SCHEMES = ("euler", "milstein", "exact")
QUADRATURES = ("left", "trapezoid")


@struct.dataclass
class Paths:
    """M paths on one mesh. Time leads: `[N + 1]` points, `[N]` steps."""

    time: Array
    """`[N + 1]` the mesh."""
    state: Array
    """`[N + 1, M, d]`."""
    action: Array
    """`[N, M, k]`, held constant during a step."""
    log_prob: Array
    """`[N, M]` of the action; 0 without a policy."""
    reward: Array
    """`[N, M]` reward rate of a step, -γ log π included, worth at the step's start."""
    terminal: Array
    """`[M]` h at the horizon; 0 when the horizon is infinite."""


def euler_step(  # noqa: PLR0913 (what a step of a scheme is made of)
    diffusion: Diffusion,
    time: Array,
    state: Array,
    action: Array,
    duration: Array,
    noise: Array,
) -> Array:
    """One Euler-Maruyama step `[d]`: weak order 1, strong order 1/2."""
    drift = diffusion.drift(time, state, action)
    volatility = diffusion.volatility(time, state, action)
    return state + drift * duration + volatility @ noise


def milstein_step(  # noqa: PLR0913 (what a step of a scheme is made of)
    diffusion: Diffusion,
    time: Array,
    state: Array,
    action: Array,
    duration: Array,
    noise: Array,
) -> Array:
    """One Milstein step `[d]`: strong order 1.

    ½ Σ_jk (∂σ_k/∂x · σ_j) (ΔW_j ΔW_k - δ_jk Δt) is added to Euler's step (Kloeden &
    Platen 1992, equation 10.3.16). It is the whole correction for commutative noise:
    one Brownian motion, diagonal, or additive; otherwise Lévy areas are neglected.
    """

    def volatility(x: Array) -> Array:
        return diffusion.volatility(time, x, action)

    columns = volatility(state)

    def slope(direction: Array) -> Array:
        return jax.jvp(volatility, (state,), (direction,))[1]

    slopes = jax.vmap(slope, in_axes=1)(columns)  # [j, d, k]
    products = jnp.outer(noise, noise) - duration * jnp.eye(noise.shape[0])
    correction = 0.5 * jnp.einsum("jdk,jk->d", slopes, products.astype(state.dtype))
    drift = diffusion.drift(time, state, action)
    return state + drift * duration + columns @ noise + correction


def step_function(diffusion: Diffusion, scheme: str) -> Callable[..., Array]:
    """The one-state step `(time, state, action, duration, noise) -> state` of a scheme.

    Raises:
      ValueError: an unknown scheme, or no exact transition is known.
    """
    if scheme == "exact":
        if diffusion.exact is None:
            raise ValueError(
                f"{diffusion.name} has no exact transition: use 'euler' or 'milstein'"
            )
        return diffusion.exact
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}: choose one of {SCHEMES}")
    step = euler_step if scheme == "euler" else milstein_step
    return lambda *arguments: step(diffusion, *arguments)


def simulate(
    diffusion: Diffusion,
    key: Key,
    time: Array,
    num_paths: int,
    scheme: str = "euler",
    quadrature: str = "left",
    noise: Array | None = None,
) -> Paths:
    """Simulates `num_paths` independent paths; pure, so callers jit and vmap it.

    Called outside a transformation it also checks its inputs and its result; inside
    one it cannot, and a path that explodes carries its infinities or NaNs to the end:
    call `require_finite` on the result. A mesh whose number of points is doubled gives
    the same Brownian path, refined (see `brownian`).

    Args:
      diffusion: what to simulate, under its own policy.
      key: a typed PRNG key.
      time: `[N + 1]` mesh, as `mesh` makes it; a finite horizon must be its last point.
      num_paths: M.
      scheme: "euler", "milstein" or "exact". Exact transitions are exact in law; those
        of Ornstein-Uhlenbeck type are not the same functional of the Brownian path.
      quadrature: of the running reward over a step: "left", or "trapezoid", which
        averages r_i and e^{-β Δt} r_{i+1} under the same action.
      noise: `[N, M, n]` Brownian increments; drawn from the key when not given.

    Returns:
      The paths.

    Raises:
      ValueError: unknown scheme or quadrature, a mesh that is not increasing or does
        not end at the horizon, coefficients that are not finite or have wrong shapes,
        paths that explode (the last three only outside a transformation).
    """
    chex.assert_rank(time, 1)
    if quadrature not in QUADRATURES:
        raise ValueError(f"unknown quadrature {quadrature!r}: choose {QUADRATURES}")
    step_function(diffusion, scheme)  # raises if there is none
    concrete = not any(isinstance(x, jax.core.Tracer) for x in (key, time, noise))
    if concrete:
        _check(diffusion, time, key)
    run = _run_jitted if concrete else _run
    paths = run(diffusion, num_paths, scheme, quadrature, (key, time, noise))
    if concrete:
        require_finite(paths, diffusion.name)
    return paths


def _run(
    diffusion: Diffusion, num_paths: int, scheme: str, quadrature: str, inputs: Any
) -> Paths:
    key, time, noise = inputs
    initial_key, noise_key, policy_key = jax.random.split(key, 3)
    if noise is None:
        shape = (num_paths, diffusion.noise_dimension)
        noise = brownian(noise_key, time, shape)
    state = jax.vmap(diffusion.initial)(jax.random.split(initial_key, num_paths))
    step = step_function(diffusion, scheme)
    duration = jnp.diff(time)
    over_paths = (None, 0, 0)
    reward_fn = jax.vmap(diffusion.reward, over_paths)
    beta = diffusion.discount_rate

    def act(now: Array, state: Array, key: Key) -> tuple[Array, Array]:
        if diffusion.policy is None:
            empty = jnp.zeros((state.shape[0], diffusion.action_dimension), state.dtype)
            return empty, jnp.zeros((state.shape[0],), state.dtype)
        return diffusion.policy(now, state, key)

    def body(state: Array, inputs):
        now, later, dt, dw, key = inputs
        action, log_prob = act(now, state, key)
        following = jax.vmap(step, (None, 0, 0, None, 0))(now, state, action, dt, dw)
        reward = reward_fn(now, state, action)
        if quadrature == "trapezoid":
            next_reward = reward_fn(later, following, action)
            reward = 0.5 * (reward + jnp.exp(-beta * dt) * next_reward)
        reward = reward - diffusion.temperature * log_prob
        return following, (following, action, log_prob, reward)

    keys = jax.random.split(policy_key, duration.shape[0])
    state = state.astype(time.dtype)
    last, (states, action, log_prob, reward) = jax.lax.scan(
        body, state, (time[:-1], time[1:], duration, noise, keys)
    )
    finite = math.isfinite(diffusion.horizon)
    terminal = jax.vmap(diffusion.terminal)(last)
    return Paths(
        time=time,
        state=jnp.concatenate([state[None], states]),
        action=action,
        log_prob=log_prob,
        reward=reward,
        terminal=terminal if finite else jnp.zeros_like(terminal),
    )


_run_jitted = jax.jit(_run, static_argnums=(0, 1, 2, 3))


def _check(diffusion: Diffusion, time: Array, key: Key) -> None:
    steps = np.diff(np.asarray(time))
    if not steps.size or not np.all(steps > 0):
        raise ValueError("a mesh must have at least 2 points and increase strictly")
    end = float(time[-1])
    if math.isfinite(diffusion.horizon) and not math.isclose(
        end, diffusion.horizon, rel_tol=1e-5
    ):
        raise ValueError(
            f"the mesh ends at {end:.6g} but {diffusion.name} has its horizon at "
            f"{diffusion.horizon}: make it with mesh(horizon, step_size)"
        )
    state = diffusion.initial(key)
    check_coefficients(diffusion, float(time[0]), state)


def require_finite(paths: Paths, name: str = "diffusion") -> None:
    """Raises ValueError if any path exploded, and says when the first one did.

    Args:
      paths: concrete paths; more leading axes (seeds) are allowed.
      name: for the message.
    """
    state, time = np.asarray(paths.state), np.asarray(paths.time)
    bad = ~np.isfinite(state).all(-1)  # [..., N + 1, M]
    if bad.any():
        first = int(np.nonzero(bad.any(-1).reshape(-1, bad.shape[-2]).any(0))[0][0])
        when = time.reshape(-1, time.shape[-1])[0, first]
        share = bad.any(-2).mean()
        raise ValueError(
            f"{name} exploded on {share:.1%} of the paths, first at time {when:.4g}: "
            "take a smaller step, or check the drift and the policy's gain"
        )
    if not np.isfinite(np.asarray(paths.reward)).all():
        raise ValueError(f"{name}: the reward is not finite on some path")


def observe(diffusion: Diffusion, time: Array, state: Array) -> Array:
    """What a value function sees: `[..., 1 + d]` (t, x), or x if T is infinite.

    Args:
      diffusion: tells whether time matters.
      time: `[...]`.
      state: `[..., d]`.
    """
    if math.isinf(diffusion.horizon):
        return state
    return jnp.concatenate([time[..., None].astype(state.dtype), state], -1)


def transitions(diffusion: Diffusion, paths: Paths) -> Transition:
    """Paths as the transitions `[N, M]` that methods learn from.

    The reward of a step is its rate times its duration. A finite horizon ends the
    episode: the last discount is 0 and its reward includes e^{-β Δt} h(X_T), so a value
    family need not know h. An infinite horizon is cut there instead. Without control
    the action is one zero, as in the environment. `extras` hold each step's `duration`
    and the action's `log_prob`, both `[N, M]`.
    """
    num_steps, num_paths = paths.reward.shape
    time = jnp.broadcast_to(paths.time[:, None], (num_steps + 1, num_paths))
    duration = jnp.diff(time, axis=0)
    observation = observe(diffusion, time, paths.state)
    last = jnp.broadcast_to(
        (jnp.arange(num_steps) == num_steps - 1)[:, None], (num_steps, num_paths)
    )
    finite = math.isfinite(diffusion.horizon)
    worth = jnp.exp(-diffusion.discount_rate * duration[-1]) * paths.terminal
    reward = (paths.reward * duration).at[-1].add(worth)
    action = paths.action
    if not diffusion.action_dimension:
        action = jnp.zeros((num_steps, num_paths, 1), reward.dtype)
    return Transition(
        observation=observation[:-1],
        action=action,
        reward=reward,
        discount=jnp.where(last & finite, 0.0, 1.0).astype(reward.dtype),
        truncated=last & (not finite),
        next_observation=observation[1:],
        extras={"duration": duration, "log_prob": paths.log_prob},
    )
