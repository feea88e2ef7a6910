"""What every arm begins with: a world, a paraphraser, experts, a learned reward, data.

The paraphraser imitates pairs of the same meaning, its answers mix all styles. Experts
are bigrams of each style; the anti-expert is the bigram of the source's style. The
classifier of styles that rewards learning sees counts of tokens and labels of which one
in twenty is wrong; what is reported is the closed form.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.language import style as language
from envs.language import style_reward
from rlx import train
from rlx.data.language import draw
from rlx.data.prompts import Prompts
from rlx.generation.experts import Parts, product
from rlx.generation.language_model import decoder
from rlx.generation.sampling import Sampling
from rlx.generation.speakers import of_decoder, of_table, sampler, unprompted
from rlx.methods import sft
from rlx.networks import transformer
from rlx.ops.control_tokens import Rated
from rlx.ops.sequences import Sequences, joined
from rlx.types import Array, Key, Params

STYLES, LENGTH = 4, 20
PAIRS, PARAPHRASER_STEPS, PARAPHRASER_RATE, BATCH = 20_000, 800, 3e-3, 128
CORPUS, SMOOTHING, NOISE = 2000, 0.1, 0.05
SOURCES, DRAWS, KEPT = 1700, 4, 1250
"""Sources to rewrite in three other styles each, texts for each, texts kept a style."""
DECODING = {"top_p": 0.9, "max_tokens": LENGTH, "stop_tokens": (language.END,)}
"""Of all arms, in training and in evaluation."""
STRENGTH, NUCLEUS = 0.4, 0.6
"""Of the product of experts that writes the first texts: those of the paper's code."""
TUNED = (0.8, 0.95)
"""The best of a grid in another world, for products of experts alone."""


class World(NamedTuple):
    """All that arms share. S styles, V words."""

    language: language.World
    shape: transformer.Config
    paraphraser: Params
    bigrams: Array
    """`[S, V, V]` log-probabilities."""
    classifier: Array
    """`[V + 1, S]` weights of counts, and biases."""


class Asked(NamedTuple):
    """Sources and the styles in which they shall be said again."""

    prompts: Prompts
    source_style: Array
    style: Array


# ------------------------------------------------------------------------ the parts


def make(key: Key) -> World:
    """A random world with everything learned in it."""
    keys = jax.random.split(key, 4)
    world = language.random(keys[0], num_styles=STYLES)
    shape = transformer.Config(
        vocabulary_size=world.vocabulary_size,
        width=64,
        num_layers=2,
        num_heads=4,
        max_length=2 * LENGTH + 3,
    )
    return World(
        world,
        shape,
        _paraphraser(keys[1], world, shape),
        _bigrams(keys[2], world),
        _classifier(keys[3], world),
    )


def _paraphraser(key: Key, world: language.World, shape: transformer.Config) -> Params:
    rows_key, run_key = jax.random.split(key)
    rows = language.paraphrases(rows_key, world, PAIRS)
    config = sft.Config(learning_rate=PARAPHRASER_RATE, warmup_steps=50)
    method, source = sft.make(decoder(shape), config), draw(rows, batch_size=BATCH)
    state = jax.jit(lambda key: train.init(method, source, key))(run_key)
    advance = jax.jit(lambda state: train.run(method, source, state, PARAPHRASER_STEPS))
    return advance(state)[0].learner.params


def _texts(key: Key, world: language.World) -> tuple[language.Text, Array]:
    style = jnp.arange(STYLES * CORPUS) % STYLES
    return language.corpus(key, world, style), style


def _bigrams(key: Key, world: language.World) -> Array:
    """Counts of neighbours plus 0.1; a text begins after BEGIN."""
    text, style = _texts(key, world)
    begin = jnp.full((len(style), 1), language.BEGIN)
    before = jnp.concatenate([begin, text.tokens[:, :-1]], axis=1)
    size = world.vocabulary_size
    counts = jnp.zeros((STYLES, size, size))
    place = (jnp.broadcast_to(style[:, None], before.shape), before, text.tokens)
    counts = counts.at[place].add(text.mask)
    return jnp.log(counts + SMOOTHING) - jnp.log(
        jnp.sum(counts + SMOOTHING, axis=-1, keepdims=True)
    )


def counts_of(size: int, text: language.Text) -> Array:
    """`[N, V + 1]` how often each token is in texts, and 1."""
    there = jax.nn.one_hot(text.tokens, size) * text.mask[..., None]
    found = jnp.sum(there, axis=-2)
    return jnp.concatenate([found, jnp.ones((*found.shape[:-1], 1))], axis=-1)


def _classifier(key: Key, world: language.World) -> Array:
    """Logistic regression of each style, 300 steps of Adam, a little weight decay."""
    text_key, flip_key, label_key = jax.random.split(key, 3)
    text, style = _texts(text_key, world)
    wrong = jax.random.uniform(flip_key, style.shape) < NOISE
    other = jax.random.randint(label_key, style.shape, 0, STYLES)
    label = jax.nn.one_hot(jnp.where(wrong, other, style), STYLES)
    size = world.vocabulary_size
    counts = counts_of(size, text)
    optimizer = optax.adamw(0.05, weight_decay=1e-3)

    def step(carry: tuple, _: None) -> tuple:
        weights, state = carry

        def loss(weights: Array) -> Array:
            logits = counts @ weights
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, label))

        updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros((size + 1, STYLES))
    begin = (start, optimizer.init(start))
    return jax.jit(lambda x: jax.lax.scan(step, x, length=300))(begin)[0][0]


# ------------------------------------------------------------------- texts and rewards


def ask(key: Key, world: World, count: int) -> Asked:
    """Whole sentences in one style each, and for each another style."""
    keys = jax.random.split(key, 4)
    source_style = jax.random.randint(keys[0], (count,), 0, STYLES)
    meaning = language.meanings(keys[1], world.language, count)
    source = language.render(keys[2], world.language, meaning, source_style)
    other = jax.random.randint(keys[3], (count,), 0, STYLES - 1)
    other = other + (other >= source_style)
    return Asked(language.prompts(source), source_style, other)


def apart(rows: Sequences) -> tuple[language.Text, language.Text]:
    """Sources and answers of rows `[N, L + T]`."""
    asked = Prompts(rows.tokens[:, :LENGTH], rows.mask[:, :LENGTH])
    answer = language.Text(rows.tokens[:, LENGTH:], rows.response[:, LENGTH:])
    return language.source_of(asked), answer


def gold(world: World, rows: Sequences, style: Array) -> Array:
    """`[N, 3]` closed forms of strength, similarity, fluency."""
    return style_reward.metrics(world.language, *apart(rows), style)


def learned_strength(world: World, answer: language.Text, style: Array) -> Array:
    """What the classifier says."""
    logits = counts_of(world.language.vocabulary_size, answer) @ world.classifier
    found = jnp.take_along_axis(jax.nn.sigmoid(logits), style[:, None], axis=1)[:, 0]
    return jnp.where(style_reward.says(answer), found, 0.0)


def proxy(world: World, rows: Sequences, style: Array) -> Array:
    """`[N, 3]` what learning is rewarded by: strength is the classifier's."""
    found = gold(world, rows, style)
    return found.at[:, 0].set(learned_strength(world, apart(rows)[1], style))


# ------------------------------------------------------------------------- speaking


@functools.partial(jax.jit, static_argnames=("shape", "anti"))
def poe(
    key: Key,
    shape: transformer.Config,
    parts: tuple[Params, Array],
    asked: Asked,
    numbers: tuple[float, float],
    anti: str = "source",
) -> Sequences:
    """One text for each source by the product of experts."""
    params, bigrams = parts
    expert = unprompted(of_table, language.BEGIN)
    speaker = product(
        of_decoder(shape),
        expert,
        None if anti == "none" else expert,
        strength=numbers[0],
        nucleus=numbers[1],
    )
    against = asked.source_style
    mean = jnp.log(jnp.mean(jnp.exp(bigrams), axis=0))[None]
    avoided = (bigrams, against)
    if anti == "pooled":
        avoided = (mean, jnp.zeros_like(against))
    given = Parts(params, (bigrams, asked.style), avoided)
    return spoken(sampler(speaker, Sampling(**DECODING)), given, asked.prompts, key)


def spoken(speaks: object, params: object, prompts: Prompts, key: Key) -> Sequences:
    """Rows of prompts and of what a sampler answers."""
    found = speaks(params, prompts.tokens, prompts.mask, key)  # type: ignore[operator]
    return joined(prompts.tokens, prompts.mask, found.tokens, found.mask)


def generated(key: Key, world: World, anti: str = "source") -> tuple[Rated, Asked]:
    """All texts of the product of experts, rated; and the sources once each."""
    ask_key, key = jax.random.split(key)
    once = ask(ask_key, world, SOURCES)
    step = jnp.arange(1, STYLES)[:, None]
    style = (once.source_style[None] + step) % STYLES
    many = Asked(
        jax.tree.map(lambda x: jnp.tile(x, (STYLES - 1, 1)), once.prompts),
        jnp.tile(once.source_style, STYLES - 1),
        style.reshape(-1),
    )
    found = [
        poe(
            key,
            world.shape,
            (world.paraphraser, world.bigrams),
            many,
            (STRENGTH, NUCLEUS),
            anti,
        )
        for key in jax.random.split(key, DRAWS)
    ]
    rows = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
    wanted = jnp.tile(many.style, DRAWS)
    return Rated(rows, wanted, rate(world, rows, wanted)), once


@functools.partial(jax.jit, static_argnames=("shape",))
def _rate(
    world: language.World,
    shape: transformer.Config,
    classifier: Array,
    rows: Sequences,
    style: Array,
) -> Array:
    return proxy(World(world, shape, (), (), classifier), rows, style)  # type: ignore


def rate(world: World, rows: Sequences, style: Array) -> Array:
    """`proxy`, compiled."""
    return _rate(world.language, world.shape, world.classifier, rows, style)
