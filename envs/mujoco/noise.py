"""Reset noise that several tasks share, drawn in JAX.

The distributions are Gymnasium's, the generator is JAX's. Draws are float32; the engine
widens them to float64 exactly.
"""

from __future__ import annotations

import jax

from envs.mujoco.task import Context


def uniform(c: Context, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `(qpos, qvel)`: uniform noise on initial positions and on velocities."""
    scale = c.option.reset_noise_scale
    for_qpos, for_qvel = jax.random.split(key)
    noise = jax.random.uniform(for_qpos, (c.model.nq,), minval=-scale, maxval=scale)
    qvel = jax.random.uniform(for_qvel, (c.model.nv,), minval=-scale, maxval=scale)
    return c.qpos.astype("float32") + noise, qvel


def normal(c: Context, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `(qpos, qvel)`: uniform noise on positions, normal on velocities."""
    scale = c.option.reset_noise_scale
    for_qpos, for_qvel = jax.random.split(key)
    noise = jax.random.uniform(for_qpos, (c.model.nq,), minval=-scale, maxval=scale)
    qvel = scale * jax.random.normal(for_qvel, (c.model.nv,))
    return c.qpos.astype("float32") + noise, qvel
