"""What all arms on real text begin with: sentences, judges, a paraphraser, experts.

Everything is learned here from files of sentences: a byte-pair encoding; a paraphraser
that undoes noise; for each style a bigram model; and two sets of judges, from disjoint
sentences. The first set rewards learning, the second one, which no arm ever sees, is
what is reported.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rlx import checkpoint, text_rewards, train
from rlx.data import style_corpus, styles, tokenizer
from rlx.data.language import draw
from rlx.data.style_corpus import Corpus
from rlx.data.tokenizer import Tokenizer
from rlx.generation.language_model import decoder
from rlx.generation.sampling import Sampling
from rlx.methods import sft
from rlx.networks import transformer
from rlx.ops import bags
from rlx.ops.corruption import Noise, corrupt
from rlx.ops.sequences import Sequences, joined
from rlx.types import Array, DataSource, Key, Method, Params, TrainState


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is; all of it stands in the record."""

    words: int = 3072
    """V at most."""
    min_count: int = 30
    """Sentences in which a word must stand, so that most words are one token."""
    source: int = 12
    """Places of a prompt: tokens of a sentence and BEGIN."""
    answer: int = 14
    width: int = 96
    layers: int = 2
    judge_steps: int = 600
    judge_filters: int = 32
    paraphraser_steps: int = 2000
    parts: tuple[int, int, int] = (3700, 3700, 400)
    """Sentences of each style to learn from, for the held-out judges, for the test."""
    batch: int = 64


NOISES = (
    Noise(drop=0.1, shuffle=2.0, replace=0.2, repeat=0.02),
    Noise(drop=0.1, shuffle=0.0, replace=0.3),
    Noise(drop=0.2, shuffle=3.0, replace=0.1),
    Noise(drop=0.0, shuffle=0.0, replace=0.4),
)
"""What the paraphraser undoes, each as often; words are replaced by neighbours."""
NEIGHBOURS, VECTORS = 8, 96
RATE = 3e-3


@struct.dataclass
class Learned:
    """Arrays that are kept. S styles, V words."""

    paraphraser: Params
    judges: text_rewards.Judges
    held_out: text_rewards.Judges
    train: Corpus
    test: Corpus
    bigrams: Array
    """`[S, V, V]`: of the sentences to learn from; the experts."""
    held_out_bigrams: Array
    """`[S, V, V]`: of those of the held-out judges; they measure perplexity."""


@dataclasses.dataclass(frozen=True)
class World:
    """All that arms share."""

    size: Size
    styles: tuple[str, ...]
    tokenizer: Tokenizer
    learned: Learned
    told: dict[str, Any]
    """What the record says of the making."""

    @property
    def begin(self) -> int:
        """The token that ends a prompt."""
        return self.tokenizer.special(style_corpus.BEGIN)

    @property
    def shape(self) -> transformer.Config:
        """Of the decoder."""
        return shape(self.size, self.tokenizer)

    def sampling(self) -> Sampling:
        """Of all arms, in training and in evaluation."""
        return Sampling(
            max_tokens=self.size.answer,
            top_p=0.9,
            stop_tokens=(self.tokenizer.end,),
            pad_token=self.tokenizer.pad,
        )

    def score(self, judges: text_rewards.Judges) -> Callable[..., Array]:
        """`(rows, style) -> [N, 3]`."""
        told = settings(self.size, self.tokenizer, len(self.styles))
        go = text_rewards.scorer(told, self.size.source)
        return lambda rows, style: go(judges, rows, style)


def shape(size: Size, words: Tokenizer) -> transformer.Config:
    """Of the decoder: room for the prompt, the answer and three control words."""
    return transformer.Config(
        vocabulary_size=words.vocabulary_size,
        width=size.width,
        num_layers=size.layers,
        num_heads=4,
        max_length=size.source + size.answer + 3,
    )


def settings(size: Size, words: Tokenizer, count: int) -> text_rewards.Settings:
    """Of the judges."""
    return text_rewards.Settings(
        count,
        words.vocabulary_size,
        words.special(style_corpus.BEGIN),
        width=size.judge_filters,
        steps=size.judge_steps,
    )


def make(key: Key, paths: Mapping[str, str], size: Size, encoding: str) -> World:
    """Reads the files and learns everything."""
    limits = styles.Limits(min_count=size.min_count)
    texts = styles.load(paths, limits, encoding=encoding, drop=True)
    words = style_corpus.tokenizer(texts, size.words)
    corpus = style_corpus.encoded(texts, words, size.source)
    mine, judge, test = style_corpus.parted(corpus, size.parts, seed=0)
    keys = jax.random.split(key, 3)
    chosen = settings(size, words, len(texts.names))
    judges, accuracy = text_rewards.fit(keys[0], mine, chosen)
    held_out, held_accuracy = text_rewards.fit(keys[1], judge, chosen)
    print("judges", accuracy, held_accuracy, flush=True)
    paraphraser, losses = _paraphraser(keys[2], mine, size, words)
    count, begin = len(texts.names), words.special(style_corpus.BEGIN)
    learned = Learned(
        paraphraser,
        judges,
        held_out,
        mine,
        test,
        _bigrams(mine, count, words.vocabulary_size, begin),
        _bigrams(judge, count, words.vocabulary_size, begin),
    )
    told = {
        "sentences": {
            name: {"read": report.rows, "kept": report.kept}
            for name, report in texts.reports.items()
        },
        "judges": {"rewarding": accuracy, "held_out": held_accuracy},
        "paraphraser_loss": losses,
        "size": dataclasses.asdict(size),
    }
    return World(size, texts.names, words, learned, told)


def _bigrams(corpus: Corpus, count: int, num_words: int, begin: int) -> Array:
    def one(style: int) -> Array:
        mask = corpus.mask & (corpus.style == style)[:, None]
        return bags.bigrams(corpus.tokens, mask, num_words=num_words, begin=begin)

    return jnp.stack([one(style) for style in range(count)])


def neighbours(corpus: Corpus, words: Tokenizer) -> Array:
    """`int[V, J]`: words of like company; pieces of words have themselves alone."""
    total = words.vocabulary_size
    vectors = bags.word_vectors(
        corpus.tokens, corpus.mask, num_words=total, width=VECTORS
    )
    whole = jnp.array([words.decode([token]).startswith(" ") for token in range(total)])
    near = jnp.where(whole[None], vectors @ vectors.T, -2.0) - 2.0 * jnp.eye(total)
    found = jax.lax.top_k(near, NEIGHBOURS)[1]
    return jnp.where(whole[:, None], found, jnp.arange(total)[:, None])


def paraphrases(key: Key, corpus: Corpus, size: Size, words: Tokenizer) -> Sequences:
    """Noisy sentences as prompts, and the sentences as answers."""
    begin = words.special(style_corpus.BEGIN)
    said = corpus.mask & (corpus.tokens > begin)
    choices = neighbours(corpus.replace(mask=said), words)
    wider = ((0, 0), (0, size.answer - size.source))
    answer, there = jnp.pad(corpus.tokens, wider), jnp.pad(corpus.mask, wider)
    found = []
    keys = jax.random.split(key, len(NOISES))
    for own_key, noise in zip(keys, NOISES, strict=True):
        tokens, mask = corrupt(own_key, corpus.tokens, said, noise, choices)
        end = jnp.arange(size.source)[None] == jnp.sum(mask, axis=1, keepdims=True)
        noisy = Corpus(jnp.where(end, words.end, tokens), mask | end, corpus.style)
        asked = style_corpus.asked(noisy, begin)
        found.append(joined(asked.tokens, asked.mask, answer, there))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *found)


def _paraphraser(
    key: Key, corpus: Corpus, size: Size, words: Tokenizer
) -> tuple[Params, list[float]]:
    rows_key, run_key = jax.random.split(key)
    rows = paraphrases(rows_key, corpus, size, words)
    config = sft.Config(learning_rate=RATE, warmup_steps=50, weight_decay=0.01)
    method = sft.make(decoder(shape(size, words)), config)
    source = draw(rows, batch_size=size.batch)
    steps = size.paraphraser_steps
    state, losses = learn(method, source, run_key, steps, "token_loss")
    return state.learner.params, losses


def learn(
    method: Method, source: DataSource, key: Key, steps: int, shown: str
) -> tuple[TrainState, list[float]]:
    """Trains in pieces of 50 steps, with a metric's mean over each."""
    piece = min(50, steps)
    state = jax.jit(lambda key: train.init(method, source, key))(key)
    go = jax.jit(lambda state: train.run(method, source, state, piece))
    found = []
    for number in range(1, steps // piece + 1):
        state, metrics = go(state)
        found.append(round(float(jnp.mean(metrics[shown])), 4))
        if number % 4 == 0:
            print(f"  step {number * piece}: {shown} {found[-1]}", flush=True)
    return state, found


# --------------------------------------------------------------------------- folders


def save(folder: Path, world: World) -> None:
    """Keeps a world, so that seeds can run in processes of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    world.tokenizer.save(folder / "tokenizer.json")
    checkpoint.save(folder / "checkpoints", 0, world.learned)
    told = {"styles": world.styles, "told": world.told}
    (folder / "world.json").write_text(json.dumps(told, indent=1) + "\n")


def load(folder: Path) -> World:
    """Reads what `save` wrote."""
    told = json.loads((folder / "world.json").read_text())
    numbers = told["told"]["size"]
    size = Size(**{**numbers, "parts": tuple(numbers["parts"])})
    words = tokenizer.load(folder / "tokenizer.json")
    like = jax.eval_shape(lambda: _empty(size, words, len(told["styles"])))
    learned = checkpoint.load(folder / "checkpoints", like)
    return World(size, tuple(told["styles"]), words, learned, told["told"])


def _empty(size: Size, words: Tokenizer, count: int) -> Learned:
    key, total = jax.random.key(0), words.vocabulary_size
    chosen = settings(size, words, count)
    strength, fluency = text_rewards.networks(chosen)
    judges = text_rewards.Judges(
        strength.init(key),
        fluency.init(key),
        jnp.zeros((total, chosen.vector_width)),
    )

    def corpus(rows: int) -> Corpus:
        tokens = jnp.zeros((rows * count, size.source), jnp.int32)
        return Corpus(tokens, tokens > 0, jnp.zeros(rows * count, jnp.int32))

    table = jnp.zeros((count, total, total))
    params = transformer.init(shape(size, words), key)
    train, test = corpus(size.parts[0]), corpus(size.parts[2])
    return Learned(params, judges, judges, train, test, table, table)
