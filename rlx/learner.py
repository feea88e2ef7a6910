"""From a batch to new parameters: the one place where gradient steps are taken."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rlx.ops import shuffling
from rlx.types import (
    FEEDBACK,
    Array,
    Key,
    LearnerState,
    LossFn,
    Method,
    Metrics,
    Params,
    Policy,
    PyTree,
)

STOP = "stop"
"""A loss that reports this boolean metric ends the gradient steps on its batch."""


def init(method: Method, key: Key, num_envs: int = 1) -> LearnerState:
    """The state before any learning; the target starts as a copy of the parameters."""
    params = method.init(key)
    return LearnerState(
        params=params,
        # A copy: donated buffers may not be shared between two leaves.
        target_params=jax.tree.map(jnp.copy, params),
        stats=method.init_stats(num_envs),
        opt_state=method.optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
    )


def policy(method: Method, learner: LearnerState) -> Policy:
    """The current policy as a data source or an evaluation sees it."""

    def act(observation: PyTree, carry: PyTree, key: Key | None):
        return method.act(learner.params, learner.stats, observation, carry, key)

    return Policy(act, method.init_carry)


def update(
    method: Method, learner: LearnerState, batch: PyTree, key: Key
) -> tuple[LearnerState, Metrics]:
    """Prepares a batch once, then takes epochs x minibatches gradient steps on it.

    Args:
      method: what to learn with.
      learner: the state to improve.
      batch: as the data source made it.
      key: for shuffling and for the loss.

    Returns:
      The new state, and metrics averaged over the gradient steps taken; `FEEDBACK`,
      where the loss reports it, has leaves as long as the batch's, in its order, of
      the last pass over it.

    Raises:
      ValueError: the prepared batch cannot be cut into equal minibatches.
    """
    stats, batch = method.prepare(learner, batch)
    learner = learner.replace(stats=stats)
    if method.update is not None:
        return method.update(learner, batch, key)
    return _gradient_steps(method, learner, batch, key)


def gradient_step(
    method: Method, learner: LearnerState, batch: PyTree, key: Key
) -> tuple[LearnerState, Metrics]:
    """One step of the optimiser on one (mini)batch, then the target's update."""
    grad_fn = jax.value_and_grad(method.loss_fn, has_aux=True)
    (loss, metrics), gradient = grad_fn(
        learner.params, learner.target_params, learner.stats, batch, key
    )
    updates, opt_state = method.optimizer.update(
        gradient, learner.opt_state, learner.params
    )
    params = optax.apply_updates(learner.params, updates)
    step = learner.step + 1
    metrics = {
        "loss": loss,
        "gradient_norm": optax.tree.norm(gradient),
        **metrics,
    }
    new = learner.replace(
        params=params,
        target_params=method.target_update(params, learner.target_params, step),
        opt_state=opt_state,
        step=step,
    )
    return new, metrics


def _gradient_steps(
    method: Method, learner: LearnerState, batch: PyTree, key: Key
) -> tuple[LearnerState, Metrics]:
    size = _leading_size(batch)
    count = method.num_minibatches
    if size % count:
        raise ValueError(
            f"a batch of {size} cannot be cut into {count} equal minibatches: choose "
            f"num_minibatches among the divisors of {size}"
        )
    if count == 1 and method.num_epochs == 1:
        learner, metrics = gradient_step(method, learner, batch, key)
        return learner, {k: v for k, v in metrics.items() if k != STOP}

    def minibatch_step(carry, inputs):
        learner, stop = carry
        indices, key = inputs
        minibatch = batch
        if count > 1:
            minibatch = jax.tree.map(lambda x: x[indices], batch)
        new, metrics = gradient_step(method, learner, minibatch, key)
        feedback = metrics.get(FEEDBACK, ())
        metrics = {k: v for k, v in metrics.items() if k != FEEDBACK}
        if STOP not in metrics:
            return (new, stop), (metrics, jnp.ones(()), feedback)
        stop = stop | metrics[STOP]
        metrics = {k: v for k, v in metrics.items() if k != STOP}
        taken = 1.0 - stop.astype(jnp.float32)
        new = jax.tree.map(lambda a, b: jnp.where(stop, a, b), learner, new)
        return (new, stop), (metrics, taken, feedback)

    shuffle_key, loss_key = jax.random.split(key)
    steps = method.num_epochs * count
    indices = _shuffled(shuffle_key, size, method.num_epochs, count)
    keys = jax.random.split(loss_key, steps)
    start = (learner, jnp.zeros((), bool))
    (learner, _), (metrics, taken, feedback) = jax.lax.scan(
        minibatch_step, start, (indices, keys)
    )
    total = jnp.maximum(jnp.sum(taken), 1.0)
    weights = jnp.where(jnp.sum(taken) > 0, taken / total, 1.0 / steps)
    means = {
        k: jnp.sum(jnp.where(weights > 0, v * weights, 0.0)) for k, v in metrics.items()
    }
    if jax.tree.leaves(feedback):
        return learner, {**means, FEEDBACK: _in_order(feedback, indices[-count:])}
    return learner, means


def _in_order(feedback: PyTree, indices: Array) -> PyTree:
    """The last epoch's feedback `[steps, size / count, ...]`, as the batch lies."""
    count = indices.shape[0]

    def leaf(x: Array) -> Array:
        if count == 1:
            return x[-1]
        last = x[-count:].reshape(-1, *x.shape[2:])
        return jnp.zeros_like(last).at[indices.ravel()].set(last)

    return jax.tree.map(leaf, feedback)


def _shuffled(key: Key, size: int, num_epochs: int, num_minibatches: int) -> Array:
    """Indices `[epochs * minibatches, size / minibatches]`, a permutation an epoch."""
    if num_minibatches == 1:
        return jnp.zeros((num_epochs, 0), jnp.int32)
    epochs = shuffling.permutations(key, size, num_epochs)
    return epochs.reshape(num_epochs * num_minibatches, size // num_minibatches)


def _leading_size(batch: PyTree) -> int:
    sizes = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(batch)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "the leaves of a prepared batch must share their leading axis, got sizes "
            f"{sorted(map(str, sizes))}: reshape them in the method's `prepare`"
        )
    return sizes.pop()


def weighted_sum(**terms: tuple[float, LossFn]) -> LossFn:
    """A loss that adds losses over the same parameters.

    `weighted_sum(ppo=(1.0, ppo_loss_fn), demonstrations=(0.1, imitation_loss_fn))`.
    Every term sees the same batch and its own key; its metrics get its name as prefix
    (`ppo/policy_loss`), and its value is reported as `ppo/loss`. `FEEDBACK` of one
    term is that of the sum.

    Args:
      **terms: name = (weight, loss_fn). Weights may be traced (sweeps).

    Raises:
      ValueError: no terms, or feedback of more than one.
    """
    if not terms:
        raise ValueError("weighted_sum needs at least one term: name=(weight, loss_fn)")

    def loss_fn(
        params: Params, target_params: Params, stats: PyTree, batch: PyTree, key: Key
    ) -> tuple[Array, Metrics]:
        total = jnp.zeros(())
        metrics = {}
        stops, feedback = [], []
        keys = jax.random.split(key, len(terms))
        for (name, (weight, term)), term_key in zip(terms.items(), keys, strict=True):
            value, term_metrics = term(params, target_params, stats, batch, term_key)
            total = total + weight * value
            metrics[f"{name}/loss"] = value
            for k, v in term_metrics.items():
                if k == STOP:
                    stops.append(v)
                elif k == FEEDBACK:
                    feedback.append(v)
                else:
                    metrics[f"{name}/{k}"] = v
        if stops:
            metrics[STOP] = jnp.any(jnp.stack(stops))
        if len(feedback) > 1:
            raise ValueError("weighted_sum: only one term may report feedback")
        if feedback:
            metrics[FEEDBACK] = feedback[0]
        return total, metrics

    return loss_fn


def map_batch(transform: Callable[[PyTree], PyTree], loss_fn: LossFn) -> LossFn:
    """The loss on `transform(batch)`: gives a term of a sum its own part of a batch."""

    def mapped(params, target_params, stats, batch, key):
        return loss_fn(params, target_params, stats, transform(batch), key)

    return mapped
