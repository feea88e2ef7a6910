r"""STEER on real text: sentences of three styles, rewritten in the two others.

    python -m experiments.steer.text prepare --world runs/text_world \
        --style shakespeare=PLAYS.txt bible=@kjv jacobean=PLAYS.txt
    python -m experiments.steer.text run --world runs/text_world --seed 0
    python -m experiments.steer.text page

`prepare` learns what is given in the paper: judges, paraphraser, experts. `run` is one
seed of all arms and leaves a run folder for `rlx style`. Either takes some five minutes
of processor time. `page` joins the seeds that there are.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.steer import text_page, text_world
from experiments.steer.text_world import World
from rlx import rewriter
from rlx.data import reward_pool, style_corpus
from rlx.data.prompts import Prompts
from rlx.data.reward_pool import Settings, best_rows
from rlx.generation import controlled
from rlx.generation.experts import Parts, product
from rlx.generation.speakers import of_decoder, of_table, sampler, unprompted
from rlx.methods import steer
from rlx.ops.control_tokens import Rated, prepended
from rlx.ops.sequences import Sequences, joined
from rlx.types import Array, Key, Params

RESULTS = Path(__file__).parent / "results"
STRENGTH, NUCLEUS = 0.5, 0.95
"""Of the product of experts: a and p₀, by the rewarding judges on sentences to learn
from; around there their product hardly depends on either."""
SIZES = (
    "words",
    "min_count",
    "source",
    "answer",
    "width",
    "judge_steps",
    "paraphraser_steps",
)
"""Numbers of `text_world.Size` that the command line may change."""
BINS = 5
CHUNK = 256
"""Texts sampled at once."""


class Plan(NamedTuple):
    """How long each part takes."""

    sources: int = 600
    """Sentences of each style that the product of experts rewrites, in each other."""
    draws: int = 2
    kept: int = 1500
    """Texts of each style that pass the filter."""
    steps: int = 500
    """Gradient steps of SFT and of STEER each."""
    every: int = 50
    """Steps between STEER's rounds of its own texts; before the first it is offline."""
    rollouts: int = 512
    rate: float = 2e-3
    control_rate: float = 3.0
    """Step sizes as in the study of the closed-form language."""
    tested: int = 167
    """Sentences of each style that are rewritten in the test, in each other style."""


class Asked(NamedTuple):
    """Sentences to rewrite, theirs and the wanted styles."""

    prompts: Prompts
    source_style: Array
    style: Array


def ask(world: World, corpus: Any, count: int) -> Asked:
    """The first `count` sentences of each style, once for each other style."""
    styles = len(world.styles)
    place = np.concatenate(
        [np.flatnonzero(np.asarray(corpus.style) == s)[:count] for s in range(styles)]
    )
    rows = jax.tree.map(lambda x: x[place], corpus)
    prompts = style_corpus.asked(rows, world.begin)
    others = jnp.arange(1, styles)[:, None]
    wanted = (rows.style[None] + others) % styles
    return Asked(
        jax.tree.map(lambda x: jnp.tile(x, (styles - 1, 1)), prompts),
        jnp.tile(rows.style, styles - 1),
        wanted.reshape(-1),
    )


# ------------------------------------------------------------------------- speaking


def spoken(speaks: Any, params: Params, asked: Asked, key: Key) -> Sequences:
    """Rows of prompts and of what a sampler answers, `CHUNK` at a time.

    Args:
      speaks: `(params, asked, key) -> Generated`.
      params: its parameters.
      asked: `[N, ...]`.
      key: used once.
    """
    go, count = jax.jit(speaks), len(asked.style)
    found = []
    for begin in range(0, count, CHUNK):
        key, own_key = jax.random.split(key)
        # The last piece overlaps the one before it, so that one program serves all.
        first = max(0, min(begin, count - CHUNK))
        part = jax.tree.map(lambda x, i=first: x[i : i + CHUNK], asked)
        said = go(params, part, own_key)
        rows = joined(part.prompts.tokens, part.prompts.mask, said.tokens, said.mask)
        found.append(jax.tree.map(lambda x, i=begin - first: np.asarray(x)[i:], rows))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *found)


def paraphrase(world: World) -> Any:
    """The paraphraser alone; parameters are its own."""
    speaks = sampler(of_decoder(world.shape), world.sampling())
    return lambda params, asked, key: speaks(
        params, asked.prompts.tokens, asked.prompts.mask, key
    )


def experts(world: World) -> Any:
    """The paraphraser times target style over source style."""
    expert = unprompted(of_table, world.begin)
    speaker = product(
        of_decoder(world.shape), expert, expert, strength=STRENGTH, nucleus=NUCLEUS
    )
    speaks = sampler(speaker, world.sampling())

    def go(params: tuple, asked: Asked, key: Key) -> Any:
        base, table = params
        given = Parts(base, (table, asked.style), (table, asked.source_style))
        return speaks(given, asked.prompts.tokens, asked.prompts.mask, key)

    return go


def steered(layout: rewriter.Layout) -> Any:
    """A model behind the best control words."""
    speaks = layout.sampler()

    def go(params: Params, asked: Asked, key: Key) -> Any:
        words = layout.controls.best(asked.style)
        row = prepended(words, asked.prompts.tokens, asked.prompts.mask)
        return speaks(params, *row, key)

    return go


def rated(world: World, rows: Sequences, style: Array) -> Rated:
    """With the rewards of the judges that learning sees."""
    score = jax.jit(world.score(world.learned.judges))
    return Rated(rows, style, score(rows, style))


# ---------------------------------------------------------------------------- arms


def generated(key: Key, world: World, plan: Plan) -> Rated:
    """Texts of the product of experts, filtered by the product of their rewards."""
    asked = ask(world, world.learned.train, plan.sources)
    params = (world.learned.paraphraser, world.learned.bigrams)
    found = []
    for own_key in jax.random.split(key, plan.draws):
        rows = spoken(experts(world), params, asked, own_key)
        found.append(rated(world, rows, asked.style))
    every = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
    return best_rows(every, jnp.prod(every.metrics, axis=-1), plan.kept)


def trained(
    key: Key, world: World, start: Rated, plan: Plan, arm: str
) -> tuple[rewriter.Layout, Params, dict[str, Any]]:
    """SFT is STEER with one bin, a constant word for each style, and without rounds."""
    layout = rewriter.Layout(
        world.styles,
        world.size.source,
        world.shape,
        world.sampling(),
        num_bins=1 if arm == "SFT" else BINS,
    )
    model_key, run_key = jax.random.split(key)
    spec = controlled.decoder(
        world.shape,
        world.learned.paraphraser,
        layout.controls,
        model_key,
        world.sampling(),
    )
    every = plan.every if arm == "STEER" else 0
    prompts = style_corpus.asked(world.learned.train, world.begin)
    settings = Settings(
        batch_size=world.size.batch,
        capacity=len(world.styles) * 2**12,
        every=every,
        rollouts=plan.rollouts if every else 0,
        stop_token=world.tokenizer.end,
    )
    source = reward_pool.pool(
        start,
        prompts,
        controls=layout.controls,
        score=world.score(world.learned.judges),
        settings=settings,
        source_style=world.learned.train.style,
    )
    config = steer.Config(
        learning_rate=plan.rate, warmup_steps=20, control_rate=plan.control_rate
    )
    method = steer.make(spec, config)
    state, losses = text_world.learn(method, source, run_key, plan.steps, "nll")
    latest = [round(float(x), 4) for x in state.source.latest]
    told = {"nll": losses, "last_round_rewards": latest}
    return layout, state.learner.params, told


def one_seed(world: World, seed: int, plan: Plan, out: Path) -> dict[str, Any]:
    """All arms; the run folder of STEER is left in `out`."""
    keys = jax.random.split(jax.random.key(seed), 8)
    asked = ask(world, world.learned.test, plan.tested)
    learned, found, told, begun = world.learned, {}, {}, time.perf_counter()

    def keep(arm: str, rows: Sequences) -> None:
        found[arm] = text_page.measured(world, rows, asked)
        seconds = round(time.perf_counter() - begun, 1)
        short = {k: round(v["mean"], 3) for k, v in found[arm]["metrics"].items()}
        print(f"{seconds:7.1f} s {arm:18s} {short}", flush=True)

    keep("copy", copied(world, asked))
    keep(
        "paraphrase",
        spoken(paraphrase(world), learned.paraphraser, asked, keys[0]),
    )
    parts = (learned.paraphraser, learned.bigrams)
    keep("product of experts", spoken(experts(world), parts, asked, keys[1]))
    start = generated(keys[2], world, plan)
    told["filtered"] = jnp.mean(start.metrics, axis=0).tolist()
    for arm, key in (("SFT", keys[3]), ("STEER", keys[4])):
        layout, params, told[arm] = trained(key, world, start, plan, arm)
        keep(arm, spoken(steered(layout), params, asked, keys[5]))
        if arm == "STEER":
            final = rewriter.Rewriter(layout, world.tokenizer, params)
            rewriter.save(out, final, plan.steps, arm=arm, seed=seed)
    return {
        "arms": found,
        "told": told,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def copied(world: World, asked: Asked) -> Sequences:
    """Answers that are the sources."""
    size, end = world.size, world.tokenizer.end
    prompts = asked.prompts
    place = jnp.arange(size.source)[None]
    count = jnp.sum(prompts.mask, axis=1, keepdims=True)
    moved = jnp.minimum(place + size.source - count, size.source - 1)
    tokens = jnp.take_along_axis(prompts.tokens, moved, axis=1)
    tokens = jnp.where(place == count - 1, end, tokens)
    there = place < count
    wider = ((0, 0), (0, size.answer - size.source))
    answer = jnp.pad(jnp.where(there, tokens, world.tokenizer.pad), wider)
    return joined(prompts.tokens, prompts.mask, answer, jnp.pad(there, wider))


# ------------------------------------------------------------------------ the command


def main() -> None:
    """One of the three commands above."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare")
    first.add_argument("--style", nargs="+", required=True, metavar="NAME=FILE")
    first.add_argument("--encoding", default="utf-8")
    for name in SIZES:
        first.add_argument(f"--{name.replace('_', '-')}", type=int)
    second = commands.add_parser("run")
    second.add_argument("--seed", type=int, default=0)
    for field, value in Plan()._asdict().items():
        name = f"--{field.replace('_', '-')}"
        second.add_argument(name, type=type(value), default=value)
    for command in (first, second):
        command.add_argument("--world", type=Path, default=Path("runs/text_world"))
    commands.add_parser("page")
    options = parser.parse_args()
    {"prepare": _prepare, "run": _run, "page": _page}[options.command](options)


def _prepare(options: argparse.Namespace) -> None:
    paths = dict(word.partition("=")[::2] for word in options.style)
    chosen = {n: getattr(options, n) for n in SIZES if getattr(options, n) is not None}
    size = text_world.Size(**chosen)
    world = text_world.make(jax.random.key(7), paths, size, options.encoding)
    text_world.save(options.world, world)


def _run(options: argparse.Namespace) -> None:
    world = text_world.load(options.world)
    plan = Plan(**{field: getattr(options, field) for field in Plan._fields})
    out = options.world.with_name(f"{options.world.name}_{options.seed}")
    found = one_seed(world, options.seed, plan, out)
    content = {
        **records.origin("steer.text", ["run", "--seed", str(options.seed)]),
        "seed": options.seed,
        "styles": world.styles,
        "world": world.told,
        "plan": plan._asdict(),
        **found,
    }
    records.write(RESULTS / f"text_seed_{options.seed}.json", content)


def _page(options: argparse.Namespace) -> None:
    del options
    paths = sorted(RESULTS.glob("text_seed_*.json"))
    runs = [json.loads(path.read_text()) for path in paths]
    text_page.write(runs, RESULTS)


if __name__ == "__main__":
    main()
