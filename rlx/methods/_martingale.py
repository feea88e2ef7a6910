"""What the martingale methods share: batches of paths, traces, sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rlx.ops import martingale as ops
from rlx.types import Array, EnvSpec, Key, Network, Params, PyTree, Transition


class PathBatch(NamedTuple):
    """Paths, prepared: leaves `[B, T, ...]`, or `[T, B, ...]` after `time_first`."""

    observation: PyTree
    next_observation: PyTree
    action: PyTree
    steps: ops.Steps
    elapsed: PyTree
    """`[B]` time since the path began, before the batch's first step."""
    trace: PyTree = ()
    """`[B, P]` the trace that an earlier batch left; () where none is carried."""


class Carried(NamedTuple):
    """What goes on from batch to batch where paths do."""

    elapsed: Array
    """`[B]` time since each path began."""
    trace: Array
    """`[B, P]` z."""


def path_batch(batch: Transition, step_size: float, goes_on: bool = False) -> PathBatch:
    """Transitions `[T, B]` to leaves `[B, T, ...]`: minibatches are whole paths.

    Args:
      batch: Δt is `extras["duration"]` where the data has it.
      step_size: Δt of every step otherwise.
      goes_on: the batch's end cuts no path that has not ended by itself.
    """
    reward = batch.reward
    extras = batch.extras if isinstance(batch.extras, dict) else {}
    duration = extras.get("duration", jnp.full_like(reward, step_size))
    cut = (batch.discount == 0) | batch.truncated
    if not goes_on:
        cut = cut.at[-1].set(True)
    steps = ops.Steps(reward, batch.discount.astype(reward.dtype), duration, cut)
    elapsed = jnp.zeros_like(duration[0])
    paths = PathBatch(
        batch.observation, batch.next_observation, batch.action, steps, elapsed
    )
    return _swap(paths)


def time_first(batch: PathBatch) -> PathBatch:
    """Leaves `[B, T, ...]` to `[T, B, ...]`."""
    return _swap(batch)


def _swap(paths: PathBatch) -> PathBatch:
    swapped = jax.tree.map(
        lambda x: jnp.swapaxes(x, 0, 1), paths._replace(elapsed=(), trace=())
    )
    return swapped._replace(elapsed=paths.elapsed, trace=paths.trace)


def per_path(elementwise: Array) -> Array:
    """Sum over time, mean over paths."""
    return jnp.mean(jnp.sum(elementwise, 0))


def traces(
    value: Network, params: Params, view: PathBatch, weight: Array, lambda_: float
) -> Array:
    """The trace of `weight` times ∇J, one row per step: `[T, B, P]`.

    It goes on from `view.trace` where there is one.
    """
    flat, unravel = ravel_pytree(params)

    def gradient(observation: Array) -> Array:
        return jax.grad(lambda x: value.apply(unravel(x), observation))(flat)

    gradients = weight[..., None] * jax.vmap(jax.vmap(gradient))(view.observation)
    start = 0.0 if isinstance(view.trace, tuple) else view.trace
    steps = view.steps
    return ops.trace(gradients, steps.duration, steps.cut, lambda_, start)


def spectator(
    spec: EnvSpec, policy: Callable[[Array, Key | None], tuple[Array, PyTree]] | None
) -> Callable:
    """`Method.act` of the policy that is evaluated; a constant 0 where it is None."""
    rank = len(spec.observation.shape)

    def act(params, stats, observation, carry, key):
        del params, stats
        if policy is not None:
            action, extras = policy(observation, key)
            return action, carry, extras
        leading = observation.shape[: observation.ndim - rank]
        action = jnp.zeros(leading + spec.action.shape, spec.action.dtype)
        return action, carry, {}

    return act
