"""Reset noise that several tasks share.

The distributions are Gymnasium's, the generator is JAX's. Draws have unit scale: what
follows from them is computed once, in the engine's own precision, so that a state and
its observation agree to the bit however the program around them is compiled.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from envs.mujoco.task import Context


def uniform(c: Context, key: jax.Array) -> jax.Array:
    """Return `[nq + nv]` draws from [-1, 1)."""
    return jax.random.uniform(key, (c.model.nq + c.model.nv,), minval=-1.0)


def normal(c: Context, key: jax.Array) -> jax.Array:
    """Return `nq` draws from [-1, 1) and `nv` from the standard normal distribution."""
    for_qpos, for_qvel = jax.random.split(key)
    qpos = jax.random.uniform(for_qpos, (c.model.nq,), minval=-1.0)
    return jnp.concatenate([qpos, jax.random.normal(for_qvel, (c.model.nv,))])


def start(c: Context, draws: Any) -> tuple[Any, Any]:
    """Return `(qpos, qvel)`: the model's initial state plus scaled draws."""
    noise = c.option.reset_noise_scale * draws
    return c.qpos + noise[..., : c.model.nq], noise[..., c.model.nq :]
