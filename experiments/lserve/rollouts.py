"""Sparse rollouts for learners: how far off they are, and whether it matters.

    python -m experiments.lserve.rollouts mismatch  # of the model that learnt recall
    python -m experiments.lserve.rollouts learning  # GRPO in the Markov language

`mismatch`: words are drawn by the sparse engine after a long text, and their
log-probabilities are computed again by the dense network in one pass. `learning`: the
same policy learns from rollouts of the dense sampler and of sparse ones, with and
without importance weights; rewards and divergences are those of the dense policy.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import markov
from experiments import records
from experiments.lserve import accuracy, asking, tasks
from experiments.lserve.timing import RESULTS
from experiments.vpo import common
from experiments.vpo.language import SHAPE, World, imitate, measurer
from rlx import train
from rlx.data.prompts import respond
from rlx.generation import engine, heads, language_model
from rlx.generation.sampling import Sampling
from rlx.generation.sparse import Sparse
from rlx.generation.speakers import sampler
from rlx.methods import grpo
from rlx.networks import transformer
from rlx.ops import importance, language
from rlx.ops.sequences import joined

TEXT, ANSWER, TEXTS = 1024, 32, 16
GROUPS, ANSWERS, STEPS = 16, 8, 200


# --------------------------------------------------------------------------- mismatch


def mismatch(seed: int) -> dict[str, Any]:
    """Of words that follow texts of 1,024 words, in several settings of the engine."""
    study = accuracy.study("recall", seed)
    found = heads.load(accuracy.head_file("recall", seed))
    full = accuracy.base(study, found)
    settings = {"dense": asking.everything(TEXT + ANSWER, study.page)}
    settings["8 bits alone"] = dataclasses.replace(settings["dense"], bits=8)
    settings["4 bits alone"] = dataclasses.replace(settings["dense"], bits=4)
    settings["streaming alone"] = dataclasses.replace(settings["dense"], heads=found)
    for budget in (512, 256, 128, 64):
        settings[f"LServe, {budget} words"] = dataclasses.replace(full, budget=budget)
    text = study.text(TEXT)
    keys = jax.random.split(jax.random.key(23), TEXTS)
    prompt = jax.vmap(lambda key: tasks.text(text, key)[0])(keys)
    rows = {}
    for name, sparse in settings.items():
        off = _mismatch(study.config, sparse, study.params, prompt)
        rows[name] = {k: round(float(v), 6) for k, v in off._asdict().items()}
        print(f"{name:20s} {rows[name]}", flush=True)
    return {"text": TEXT, "answer": ANSWER, "texts": TEXTS, "settings": rows}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mismatch(
    config: transformer.Config, sparse: Sparse, params: Any, prompt: jax.Array
) -> importance.Mismatch:
    speak = sampler(engine.speaker(config, sparse), Sampling(max_tokens=ANSWER))
    there = jnp.ones(prompt.shape, bool)
    said = speak(params, prompt, there, jax.random.key(0))
    rows = joined(prompt, there, said.tokens, said.mask)
    logits = transformer.decoder(config).apply(params, rows.tokens, mask=rows.mask)
    dense = language.response_log_prob(logits, rows.tokens, rows.response)
    dense = dense[:, prompt.shape[1] :]
    return importance.mismatch(dense, said.log_prob, said.mask)


# --------------------------------------------------------------------------- learning


def arms() -> dict[str, tuple[Sparse | None, float | None]]:
    """What is read, and the cap of the importance weights."""
    some = Sparse(page_size=2, logical_size=1, budget=4, interval=1)
    alone = Sparse(page_size=1, logical_size=1, budget=1, interval=1, sink_pages=0)
    return {
        "dense": (None, None),
        "4 of 13 words": (some, None),
        "4 of 13 words, weighted": (some, 2.0),
        "the last word alone": (alone, None),
        "the last word alone, weighted": (alone, 2.0),
    }


def learning(seeds: int) -> dict[str, Any]:
    """GRPO from the same start in every arm."""
    found: dict[str, list] = {name: [] for name in arms()}
    for key in jax.random.split(jax.random.key(29), seeds):
        world_key, measure_key, run_key = jax.random.split(key, 3)
        world = imitate(world_key)
        measure = measurer(world, measure_key)
        for name, (sparse, cap) in arms().items():
            row = learned(world, sparse, cap, run_key)
            row |= {k: float(v) for k, v in measure(row.pop("params")).items()}
            found[name].append(row)
            print(f"{name:32s} {row}", flush=True)
        jax.clear_caches()
    rewards = {name: [row["reward"] for row in rows] for name, rows in found.items()}
    table: dict[str, Any] = {}
    for name, rows in found.items():
        table[name] = {
            metric: common.mean([row[metric] for row in rows]) for metric in rows[0]
        }
        table[name]["rewards"] = [round(x, 4) for x in rewards[name]]
        table[name]["below_dense"] = common.paired(rewards["dense"], rewards[name])
    return table


def learned(
    world: World, sparse: Sparse | None, cap: float | None, key: jax.Array
) -> dict[str, Any]:
    """Parameters after `STEPS` batches, and the mismatch in the last ones."""
    speaks = language_model.decoder(
        SHAPE, Sampling(max_tokens=world.chain.length), world.model.reference, sparse
    )
    config = grpo.Config(learning_rate=1e-3, beta=0.0, num_epochs=2, importance_cap=cap)
    method = grpo.make(speaks, config)
    source = respond(
        markov.prompts(world.chain),
        batch_size=GROUPS,
        samples=ANSWERS,
        score=markov.score(world.chain),
    )
    state = jax.jit(lambda key: train.init(method, source, key))(key)
    run = jax.jit(lambda state: train.run(method, source, state, STEPS))
    state, metrics = run(state)
    off = {
        name: float(np.mean(np.asarray(value)[-20:]))
        for name, value in metrics.items()
        if "mismatch" in name
    }
    return {"params": state.learner.params, **off}


def main() -> None:
    """Measures one table and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=("mismatch", "learning"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.table == "mismatch":
        found = mismatch(options.seed)
    else:
        found = learning(options.seeds)
    content = {**records.origin("lserve.rollouts"), "tables": found}
    records.write(RESULTS / f"rollouts_{options.table}.json", content)


if __name__ == "__main__":
    main()
