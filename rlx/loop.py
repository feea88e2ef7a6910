"""The pure loop that joins a method and a source of data.

`init`, `step` and `run` are functions of arrays: `jit` them, `vmap` them over seeds,
put them into programs of your own. `rlx.train` offers them again, beside `fit`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlx import learner as learner_lib
from rlx.types import (
    FEEDBACK,
    DataSource,
    Key,
    LearnerState,
    Method,
    Metrics,
    PyTree,
    TrainState,
    Transition,
)

_ABSURD_ACTION = 1e9


def init(method: Method, source: DataSource, key: Key) -> TrainState:
    """The state of a run before its first step; everything follows from `key`."""
    learner_key, source_key, key = jax.random.split(key, 3)
    learner = learner_lib.init(method, learner_key, source.num_envs)
    source_state = source.init(source_key, learner_lib.policy(method, learner))
    return TrainState(
        learner=learner,
        source=source_state,
        key=key,
        iteration=jnp.zeros((), jnp.int32),
    )


def step(
    method: Method, source: DataSource, state: TrainState
) -> tuple[TrainState, Metrics]:
    """One batch of data and the learning on it.

    Returns:
      The new state and the metrics of source and learner, among them two that tell
      whose fault NaN is: `batch_finite` (0 where the data holds NaN or an infinite
      reward) and `learner_finite` (0 where metrics, parameters or the optimiser's
      state are no longer numbers, or actions so large that no data could be).
    """
    key, data_key, update_key = jax.random.split(state.key, 3)
    policy = learner_lib.policy(method, state.learner)
    source_state, batch, source_metrics = source.next(state.source, policy, data_key)
    learner, metrics = learner_lib.update(method, state.learner, batch, update_key)
    metrics = dict(metrics)
    if FEEDBACK in metrics:
        source_state = source.feedback(source_state, metrics.pop(FEEDBACK))
    new = TrainState(
        learner=learner,
        source=source_state,
        key=key,
        iteration=state.iteration + 1,
    )
    health = _health(batch, learner, metrics)
    return new, {**source_metrics, **metrics, **health}


def run(
    method: Method, source: DataSource, state: TrainState, num_iterations: int
) -> tuple[TrainState, Metrics]:
    """`num_iterations` steps as one `scan`; metrics get a leading axis of that size."""

    def body(state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        return step(method, source, state)

    return jax.lax.scan(body, state, length=num_iterations)


def iterations_for(source: DataSource, num_steps: float) -> int:
    """Calls of `step` that take exactly `num_steps` environment steps.

    For a source without environments (a dataset), `num_steps` counts batches.

    Raises:
      ValueError: no whole number of batches gives `num_steps`; names the nearest that
        does.
    """
    per_batch = source.steps_per_batch or 1
    if not num_steps >= 1 or num_steps % 1:
        raise ValueError(f"num_steps must be a positive whole number, got {num_steps}")
    num_steps = int(num_steps)  # 1e6 is welcome
    whole, rest = divmod(num_steps, per_batch)
    if rest:
        below, above = whole * per_batch, (whole + 1) * per_batch
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"{num_steps} steps are no whole number of batches of {per_batch}: ask "
            f"for {nearest}, or change the source's num_envs or length"
        )
    return whole


def gradient_steps(method: object, source: DataSource, num_steps: float) -> int:
    """Gradient steps in a run of `num_steps`: what schedules count in.

    Args:
      method: a `Method` or a `Config`: anything with `num_epochs` and
        `num_minibatches`.
      source: where the batches will come from.
      num_steps: environment steps of the whole run.
    """
    epochs = getattr(method, "num_epochs", 1)
    minibatches = getattr(method, "num_minibatches", 1)
    return iterations_for(source, num_steps) * epochs * minibatches


def _health(batch: PyTree, learner: LearnerState, metrics: Metrics) -> Metrics:
    sound, moderate = _without_nan(batch), jnp.ones(())
    if isinstance(batch, Transition):
        sound = sound * _finite(batch.reward)
        # To an action without measure an environment may answer anything.
        sizes = [jnp.max(jnp.abs(x)) < _ABSURD_ACTION for x in _floats(batch.action)]
        if sizes:
            moderate = jnp.all(jnp.stack(sizes)).astype(jnp.float32)
    learned = _finite((metrics, learner.params))
    learned = learned * _without_nan((learner.opt_state, learner.stats))
    return {
        "batch_finite": jnp.maximum(sound, 1.0 - moderate),
        "learner_finite": learned * jnp.maximum(sound, moderate),
    }


def _floats(tree: PyTree) -> list[jax.Array]:
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if jnp.issubdtype(jnp.result_type(x), jnp.floating)]


def _finite(tree: PyTree) -> jax.Array:
    checks = [jnp.all(jnp.isfinite(x)) for x in _floats(tree)]
    return jnp.all(jnp.stack(checks)).astype(jnp.float32) if checks else jnp.ones(())


def _without_nan(tree: PyTree) -> jax.Array:
    # Infinity can be meant (masked logits, a best value yet to come); NaN never is.
    checks = [jnp.all(~jnp.isnan(x)) for x in _floats(tree)]
    return jnp.all(jnp.stack(checks)).astype(jnp.float32) if checks else jnp.ones(())
