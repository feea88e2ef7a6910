"""The arms: how each comes to a policy. All begin with the same paraphraser.

Every trained arm takes the same gradient steps on batches of the same size, with the
same step size, clipping and warm-up.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from envs.language import style as language
from experiments.steer import world as worlds
from experiments.steer.measure import Speaks
from experiments.steer.world import Asked, World
from rlx import train
from rlx.data import reward_pool
from rlx.data.prompts import Prompts, respond
from rlx.generation import controlled
from rlx.generation.controlled import ControlledModel
from rlx.generation.sampling import Sampling
from rlx.methods import grpo, quark, steer
from rlx.ops.control_tokens import Controls, Rated, prepended
from rlx.ops.sequences import Sequences
from rlx.types import Array, DataSource, Key, Method, Params

BINS, STEPS, BATCH, CAPACITY = 5, 400, 64, 2**14
OFFLINE, EVERY, ROLLOUTS = 160, 40, 768
RATE, WARMUP, CONTROL_RATE = 2e-3, 20, 3.0
GROUP = 4
"""Answers to each prompt in GRPO."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is learned from, and how."""

    data: str
    """"filtered", "unfiltered", or "filtered, no anti-expert"."""
    metrics: int = 3
    """3: a word for each reward; 1: one for their product, or none with one bin."""
    bins: int = BINS
    online: bool = False
    quark: bool = False
    """Its divergence and entropy terms."""
    grpo: bool = False
    """The second half of the steps by GRPO on the product of rewards."""


ARMS = {
    "SFT, filtered": Arm("filtered", 1, 1),
    "STEER": Arm("filtered", online=True),
    "scalar word, online": Arm("filtered", 1, online=True),
    "STEER, offline": Arm("filtered"),
    "STEER, no anti-expert": Arm("filtered, no anti-expert", online=True),
    "SFT, filtered, then GRPO": Arm("filtered", 1, 1, grpo=True),
    "Quark": Arm("filtered", 1, online=True, quark=True),
    "SFT, unfiltered": Arm("unfiltered", 1, 1),
    "one bin, online": Arm("filtered", 1, 1, online=True),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What may be tuned, for all arms alike."""

    rate: float = RATE
    control_rate: float = CONTROL_RATE
    steps: int = STEPS


def metrics_of(arm: Arm, found: Array) -> Array:
    """`[N, 3]` rewards as the arm's control words have them."""
    if arm.metrics == 3:
        return found
    return jnp.prod(found, axis=-1, keepdims=True)


def learn(
    key: Key,
    world: World,
    arm: Arm,
    data: tuple[Rated, Asked],
    options: Options = Options(),  # noqa: B008 (frozen)
) -> tuple[Speaks, Controls, list[dict[str, float]]]:
    """A policy, its control words, and what was seen on the way."""
    rated, asked = data
    controls = Controls(
        world.language.vocabulary_size, arm.metrics, worlds.STYLES, arm.bins
    )
    model_key, run_key, rl_key = jax.random.split(key, 3)
    spec = controlled.decoder(
        world.shape, world.paraphraser, controls, model_key, Sampling(**worlds.DECODING)
    )

    def score(rows: Sequences, style: Array) -> Array:
        return metrics_of(arm, worlds.proxy(world, rows, style))

    source = reward_pool.pool(
        rated.replace(metrics=metrics_of(arm, rated.metrics)),
        asked.prompts,
        controls=controls,
        score=score,
        settings=reward_pool.Settings(
            batch_size=BATCH,
            capacity=CAPACITY,
            every=EVERY if arm.online else 0,
            rollouts=ROLLOUTS if arm.online else 0,
            offline=OFFLINE if arm.online else 0,
            stop_token=language.END,
        ),
        source_style=asked.source_style,
    )
    kind: Any = quark if arm.quark else steer
    method = kind.make(spec, kind.Config(**_common(options)))
    first = options.steps // 2 if arm.grpo else options.steps
    params, seen = _run(run_key, method, source, first)
    if arm.grpo:
        params, more = _reinforced(rl_key, world, (spec, params), asked, options)
        seen += more
    sampler: Any = jax.jit(spec.model.sampler)

    def speaks(prompts: Prompts, key: Key) -> Any:
        return sampler(params, prompts.tokens, prompts.mask, key)

    return speaks, controls, seen


def _common(options: Options) -> dict[str, Any]:
    return {
        "learning_rate": options.rate,
        "warmup_steps": WARMUP,
        "control_rate": options.control_rate,
    }


def _run(
    key: Key, method: Method, source: DataSource, steps: int
) -> tuple[Params, list[dict[str, float]]]:
    """Parameters at the end, and the metrics of every `EVERY`th step."""
    state = jax.jit(lambda key: train.init(method, source, key))(key)
    advance = jax.jit(
        lambda state: train.run(method, source, state, EVERY), donate_argnums=0
    )
    seen = []
    for _ in range(steps // EVERY):
        state, metrics = advance(state)
        seen.append({k: round(float(v[-1]), 4) for k, v in metrics.items()})
    return state.learner.params, seen


def _reinforced(
    key: Key,
    world: World,
    begun: tuple[ControlledModel, Params],
    asked: Asked,
    options: Options,
) -> tuple[Params, list[dict[str, float]]]:
    """GRPO from parameters on: all prompts behind the words of all other styles."""
    spec, start = begun
    style = jnp.tile(jnp.arange(worlds.STYLES), len(asked.source_style))
    prompts = jax.tree.map(
        lambda x: jnp.repeat(x, worlds.STYLES, axis=0), asked.prompts
    )
    other = style != jnp.repeat(asked.source_style, worlds.STYLES)
    words = spec.controls.best(style)
    tokens, mask = prepended(words, prompts.tokens, prompts.mask)
    size = spec.controls.num_metrics

    def score(rows: Sequences) -> Array:
        told = spec.controls.read(rows.tokens[:, 0])[1]
        bare = jax.tree.map(lambda x: x[:, size:], rows)
        return jnp.prod(worlds.proxy(world, bare, told), axis=-1)

    source = respond(
        Prompts(tokens[other], mask[other]),
        batch_size=BATCH // GROUP,
        samples=GROUP,
        score=score,
    )
    whole = {**worlds.DECODING, "top_p": 1.0}  # what is sampled from is the policy
    model = controlled.decoder(
        world.shape, world.paraphraser, spec.controls, key, Sampling(**whole)
    ).model
    config = grpo.Config(learning_rate=options.rate / 2, warmup_steps=WARMUP, beta=0.01)
    method = grpo.make(model._replace(reference=start), config)
    return _run(key, method, source, options.steps - options.steps // 2)
