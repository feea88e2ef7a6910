"""What is said of texts: rewards in closed form, signs of cheating, obedience."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import style as language
from envs.language import style_reward
from experiments.steer import world as worlds
from experiments.steer.world import Asked, World
from rlx.data.prompts import Prompts
from rlx.ops.control_tokens import Controls, prepended
from rlx.ops.sequences import Sequences, joined
from rlx.types import Array, Key

INPUTS, OBEDIENCE = 1000, 250
Speaks = Callable[[Prompts, Key], Any]
"""`(prompts, key) -> Generated`."""


def answers(
    speaks: Speaks, asked: Asked, controls: Array | None, key: Key
) -> Sequences:
    """Rows of what is said to prompts, behind control words `[N, M]` if there are."""
    tokens, mask = asked.prompts.tokens, asked.prompts.mask
    row, there = (tokens, mask)
    if controls is not None:
        row, there = prepended(controls, tokens, mask)
    found = speaks(Prompts(row, there), key)
    return joined(tokens, mask, found.tokens, found.mask)


def copied(asked: Asked) -> Sequences:
    """The sources themselves as answers."""
    prompts = asked.prompts
    source = language.source_of(prompts)
    tokens, count = language.packed(source.tokens, source.mask, language.PAD)
    mask = jnp.arange(tokens.shape[1])[None] < count[:, None]
    return joined(prompts.tokens, prompts.mask, tokens, mask)


def perfect(key: Key, world: World, asked: Asked) -> Sequences:
    """The same meaning, said by the language itself in the style that is wanted."""
    meaning = style_reward.read(world.language, language.source_of(asked.prompts))
    longest = world.language.lengths[1]
    meaning = language.Meaning(meaning.concepts[:, :longest], meaning.count)
    said = language.render(key, world.language, meaning, asked.style)
    prompts = asked.prompts
    return joined(prompts.tokens, prompts.mask, said.tokens, said.mask)


def report(world: World, rows: Sequences, asked: Asked) -> dict[str, Any]:
    """Means over inputs; the product V per input, in thousandths."""
    gold, proxy, right = jax.jit(
        lambda rows, style: (
            worlds.gold(world, rows, style),
            worlds.proxy(world, rows, style),
            _is_right(world, rows, style),
        )
    )(rows, asked.style)
    gold, proxy = np.asarray(gold, np.float64), np.asarray(proxy, np.float64)
    value = gold.prod(axis=1)
    source, answer = worlds.apart(rows)
    said = [np.asarray(x.mask).sum(axis=1) for x in (source, answer)]
    found = dict(zip(style_reward.METRICS, gold.mean(axis=0), strict=True))
    found |= {
        "value": value.mean(),
        "learned_strength": proxy[:, 0].mean(),
        "learned_value": proxy.prod(axis=1).mean(),
        "accuracy": np.asarray(right).mean(),
        "copies": _copies(source, answer),
        "length_ratio": (said[1] / said[0]).mean(),
        "distinct_2": _distinct(answer),
    }
    rounded = {name: round(float(x), 4) for name, x in found.items()}
    values = " ".join(str(round(1000 * x)) for x in value)
    return {**rounded, "values": values}


def _is_right(world: World, rows: Sequences, style: Array) -> Array:
    """Is the wanted style the strongest of all?"""
    answer = worlds.apart(rows)[1]
    each = [
        style_reward.strength(world.language, answer, jnp.full_like(style, s))
        for s in range(worlds.STYLES)
    ]
    return jnp.argmax(jnp.stack(each, axis=-1), axis=-1) == style


def _words(text: language.Text) -> list[tuple[int, ...]]:
    tokens, mask = np.asarray(text.tokens), np.asarray(text.mask)
    mask = mask & (tokens >= language.NOTHING)
    return [tuple(row[there].tolist()) for row, there in zip(tokens, mask, strict=True)]


def _copies(source: language.Text, answer: language.Text) -> float:
    pairs = zip(_words(source), _words(answer), strict=True)
    return float(np.mean([one == other for one, other in pairs]))


def _distinct(answer: language.Text) -> float:
    """Different pairs of neighbours in units of all of them."""
    rows = _words(answer)
    pairs = [pair for row in rows for pair in zip(row, row[1:], strict=False)]
    return len(set(pairs)) / max(len(pairs), 1)


def obedience(
    world: World, speaks: Speaks, controls: Controls, asked: Asked, key: Key
) -> dict[str, list[float]]:
    """What each metric becomes when its word asks for each level, others the best.

    Means in closed form over 250 inputs; strength by the classifier as well, which is
    what the word is about.
    """
    few = jax.tree.map(lambda x: x[:OBEDIENCE], asked)
    names = style_reward.METRICS
    found: dict[str, list[float]] = {name: [] for name in (*names, "learned_strength")}
    score = jax.jit(
        lambda rows, style: (
            worlds.gold(world, rows, style),
            worlds.proxy(world, rows, style)[:, 0],
        )
    )
    top = jnp.full((OBEDIENCE, controls.num_metrics), controls.num_bins - 1)
    for k, name in enumerate(names):
        for level in range(controls.num_bins):
            bins = top.at[:, k].set(level)
            key, here = jax.random.split(key)
            rows = answers(speaks, few, controls.tokens(few.style, bins), here)
            gold, learned = score(rows, few.style)
            found[name].append(round(float(jnp.mean(gold[:, k])), 4))
            if k == 0:
                found["learned_strength"].append(round(float(jnp.mean(learned)), 4))
    return found
