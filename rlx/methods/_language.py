"""What methods for language models share: their config, their optimiser, acting.

An observation is a prompt, an action is a response:
`{"tokens": int32[..., L], "mask": bool[..., L]}` padded on the left, and
`{"tokens": int32[..., T], "mask": bool[..., T]}` padded on the right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.generation.language_model import LanguageModel
from rlx.generation.sampling import Sampler
from rlx.ops import language
from rlx.ops.sequences import Sequences
from rlx.types import Array, Carry, Key, Network, Params, PyTree

SOURCE = "text"
NO_DECAY = ("scale", "shift", "bias")
"""Names of parameters that weight decay leaves alone: norms and biases."""


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """Fields that every language method has. Floats may be swept under `vmap`."""

    learning_rate: float = 1e-4
    """AdamW's step size."""
    weight_decay: float = 0.0
    """AdamW's, of matrices and embeddings alone."""
    warmup_steps: int = 0
    """Gradient steps until the step size has grown to its full height, linearly."""
    max_gradient_norm: float = 1.0
    """Longer gradients are shortened to it."""
    adapters_only: bool = False
    """Only low-rank adapters learn; the network must have some."""
    num_epochs: int = 1
    """Passes over each batch."""
    num_minibatches: int = 1
    """Minibatches in a pass."""


def check(config: LanguageConfig) -> None:
    """Raises ValueError for fields that no run could use; traced floats pass."""
    for name, least in (("num_epochs", 1), ("num_minibatches", 1), ("warmup_steps", 0)):
        if getattr(config, name) < least:
            given = getattr(config, name)
            raise ValueError(f"{name} must be at least {least}, got {given}")
    require(config, "learning_rate", lambda x: x > 0, "be positive")
    require(config, "max_gradient_norm", lambda x: x > 0, "be positive")
    require(config, "weight_decay", lambda x: x >= 0, "not be negative")


def require(config: Any, name: str, holds: Callable[[float], bool], what: str) -> None:
    """Raises ValueError if a number of the config is wrong; traced ones pass."""
    value = getattr(config, name)
    if isinstance(value, int | float) and not holds(value):
        raise ValueError(f"{name} must {what}, got {value}")


def make_init(network: Network, reference: Params | None) -> Callable[[Key], Params]:
    """`(key) -> params`: a copy of the reference, or fresh parameters."""
    if reference is None:
        return network.init

    def init(key: Key) -> Params:
        del key
        return jax.tree.map(lambda x: jnp.array(x, copy=True), reference)

    return init


def make_optimizer(config: LanguageConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with a linear warm-up."""

    def rate(step: Array) -> Array:
        share = jnp.minimum((step + 1) / max(config.warmup_steps, 1), 1.0)
        return config.learning_rate * share

    whole = optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.adamw(rate, weight_decay=config.weight_decay, mask=_decays),
    )
    if not config.adapters_only:
        return whole
    return optax.partition({True: whole, False: optax.set_to_zero()}, is_adapter)


def _decays(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not _last(path).startswith(NO_DECAY), params
    )


def is_adapter(params: Params) -> Params:
    """True for the leaves that learn when only low-rank adapters do.

    Raises:
      ValueError: there are no adapters.
    """
    found = jax.tree_util.tree_map_with_path(
        lambda path, _: _last(path).startswith("lora_"), params
    )
    if not any(jax.tree.leaves(found)):
        raise ValueError(
            "adapters_only, but the network has no adapters: give its Config a "
            "lora_rank"
        )
    return found


def _last(path: tuple) -> str:
    return str(getattr(path[-1], "key", path[-1]))


def make_act(sampler: Sampler | None) -> Callable[..., tuple[PyTree, Carry, PyTree]]:
    """`Method.act` of a language model: responds to prompts with any leading axes.

    Extras hold the `log_prob` `[..., T]` that the sampler returns. No key: greedy. An
    observation with `samples`, a number K, asks for K responses to each prompt, `[...,
    K, T]`: the prompt is read once.
    """

    def act(
        params: Params, stats: PyTree, observation: PyTree, carry: Carry, key: Any
    ) -> tuple[PyTree, Carry, PyTree]:
        del stats
        if sampler is None:
            raise ValueError(
                "this language model has no sampler: give its LanguageModel one"
            )
        lead = observation["tokens"].shape[:-1]
        prompt, mask = (
            observation[name].reshape(-1, observation[name].shape[-1])
            for name in ("tokens", "mask")
        )
        if "samples" in observation:
            lead = (*lead, observation["samples"])
            found = sampler(params, prompt, mask, key, observation["samples"])
        else:
            found = sampler(params, prompt, mask, key)
        tokens, mask, log_prob = (
            x.reshape(*lead, x.shape[-1])
            for x in (found.tokens, found.mask, found.log_prob)
        )
        return {"tokens": tokens, "mask": mask}, carry, {"log_prob": log_prob}

    return act


def make_judge(
    apply: Callable[..., Array],
) -> Callable[..., tuple[PyTree, Carry, PyTree]]:
    """`Method.act` of a network that judges texts with any leading axes.

    Args:
      apply: `(params, tokens int[B, S], mask=bool[B, S]) -> [B, ...]`.
    """

    def act(
        params: Params, stats: PyTree, observation: PyTree, carry: Carry, key: Any
    ) -> tuple[PyTree, Carry, PyTree]:
        del stats, key
        lead = observation["tokens"].shape[:-1]
        tokens, mask = (
            observation[name].reshape(-1, observation[name].shape[-1])
            for name in ("tokens", "mask")
        )
        found = apply(params, tokens, mask=mask)
        return found.reshape(*lead, *found.shape[1:]), carry, {}

    return act


def log_prob(network: Network, params: Params, rows: Sequences) -> Array:
    """Log π(token | all before it) of responses, `float32[B, S]`, 0 elsewhere."""
    logits = network.apply(params, rows.tokens, mask=rows.mask)
    return language.response_log_prob(logits, rows.tokens, rows.response)


def fields(spec: LanguageModel, config: LanguageConfig) -> dict[str, Any]:
    """The fields of a `Method` that those of language models have in common."""
    return {
        "init": make_init(spec.network, spec.reference),
        "act": make_act(spec.sampler),
        "optimizer": make_optimizer(config),
        "num_epochs": config.num_epochs,
        "num_minibatches": config.num_minibatches,
    }
