"""The same Markov language, learned by transformers and the methods of the library.

    python -m experiments.vpo.language

A decoder of one layer imitates the reference chain first (SFT). From there, offline:
2000 pairs of a perturbed chain; online: pairs of its own. Rewards and divergences are
means over 2048 sampled responses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from envs.language import markov
from experiments import records
from experiments.vpo import common
from experiments.vpo.markov import BETA, ask
from rlx import learner, train
from rlx.data import language, online_preferences
from rlx.generation.language_model import LanguageModel, decoder
from rlx.generation.sampling import Sampling
from rlx.methods import dpo, sft, vpo, xpo
from rlx.networks import transformer
from rlx.ops.language import response_log_prob, sequence_log_prob
from rlx.ops.sequences import Calibrated, Preferences
from rlx.types import Array, DataSource, Key, Method

WORDS, LENGTH, PAIRS, BATCH, SAMPLES = 16, 12, 2000, 64, 2048
SHAPE = transformer.Config(
    vocabulary_size=WORDS, width=32, num_layers=1, num_heads=2, max_length=1 + LENGTH
)
RATE = 1e-3
MARKS = (50, 150, 300, 600)


class World(NamedTuple):
    """A chain, and a language model that imitates its reference."""

    chain: markov.Chain
    model: LanguageModel


def imitate(key: Key) -> World:
    """A random world, and a transformer fitted to 8192 responses of its reference."""
    world_key, prompt_key, words_key, run_key = jax.random.split(key, 4)
    chain = markov.random(world_key, num_words=WORDS, length=LENGTH)
    prompt = jax.random.randint(prompt_key, (8192,), 0, chain.reward.shape[0])
    words = markov.sample(words_key, markov.reference_policy(chain), prompt)
    source = language.draw(markov.sequences(prompt, words), batch_size=128)
    model = decoder(SHAPE, Sampling(max_tokens=LENGTH))
    method = sft.make(model, sft.Config(learning_rate=3e-3, warmup_steps=20))
    state = jax.jit(lambda key: train.init(method, source, key))(run_key)
    state, _ = jax.jit(lambda state: train.run(method, source, state, 600))(state)
    return World(chain, model._replace(reference=state.learner.params))


def pairs_of(world: World, key: Key) -> Calibrated:
    """2000 labelled pairs of a perturbed chain, with responses of the model."""
    noise_key, pairs_key, model_key = jax.random.split(key, 3)
    chain = world.chain
    logits = chain.reference[None] + jax.random.normal(noise_key, chain.reward.shape)
    log_prob = jax.nn.log_softmax(logits, axis=-1)[:, None]
    shape = (log_prob.shape[0], chain.length, *log_prob.shape[2:])
    behaviour = jnp.broadcast_to(log_prob, shape)
    found = ask(pairs_key, chain, behaviour, behaviour, PAIRS)
    asked = found.prompt[:, None]
    assert world.model.sampler is not None
    said = world.model.sampler(
        world.model.reference, asked, jnp.ones(asked.shape, bool), model_key
    )
    chosen, rejected, calibration = (
        markov.sequences(found.prompt, words)
        for words in (found.chosen, found.rejected, said.tokens)
    )
    return Calibrated(Preferences(chosen, rejected, jnp.ones(PAIRS)), calibration)


def measurer(world: World, key: Key) -> Callable[[Any], dict[str, Array]]:
    """`(params) -> {reward, kl, value, win_rate}` by sampling."""
    chain, model = world.chain, world.model
    prompt = jnp.arange(SAMPLES) % chain.reward.shape[0]
    asked = prompt[:, None]
    sampler, apply = model.sampler, model.network.apply
    assert sampler is not None

    def answers(params: Any, key: Key) -> tuple[Any, Array]:
        said = sampler(params, asked, jnp.ones(asked.shape, bool), key)
        rows = markov.sequences(prompt, said.tokens)
        return rows, markov.score(chain)(rows)

    def log_prob(params: Any, rows: Any) -> Array:
        logits = apply(params, rows.tokens, mask=rows.mask)
        each = response_log_prob(logits, rows.tokens, rows.response)
        return sequence_log_prob(each, rows.response)

    @jax.jit
    def go(params: Any) -> dict[str, Array]:
        mine, other = jax.random.split(key)
        rows, reward = answers(params, mine)
        _, before = answers(model.reference, other)
        kl = jnp.mean(log_prob(params, rows) - log_prob(model.reference, rows))
        wins = jnp.mean((reward > before) + 0.5 * (reward == before))
        mean = jnp.mean(reward)
        return {"reward": mean, "kl": kl, "value": mean - BETA * kl, "win_rate": wins}

    return go


def arms(world: World, key: Key) -> dict[str, tuple[Method, DataSource]]:
    """Methods of the library with what they learn from."""
    model, rows = world.model, pairs_of(world, key)
    fixed = language.draw(rows.pairs, batch_size=BATCH)
    calibrated = language.draw(rows, batch_size=BATCH)
    common_fields = {"beta": BETA, "learning_rate": RATE}

    def online(**options: Any) -> DataSource:
        return online_preferences.pairs(
            markov.prompts(world.chain),
            batch_size=BATCH,
            score=markov.score(world.chain),
            reference=model,
            **options,
        )

    def ours(setting: str, calibration: str, alpha: float) -> Method:
        config = vpo.Config(
            **common_fields,
            setting=setting,
            calibration=calibration,
            alpha_mean=alpha,
        )
        return vpo.make(model, config)

    plain = dpo.make(model, dpo.Config(**common_fields))
    explore = xpo.Config(**common_fields, alpha_mean=0.01 * BETA)
    return {
        "DPO": (plain, fixed),
        "IPO": (dpo.make(model, dpo.Config(**common_fields, link="ipo")), fixed),
        "VPO chosen 0.03": (ours("offline", "chosen", 0.03), fixed),
        "VPO reference 0.03": (ours("offline", "batch", 0.03), calibrated),
        "VPO wrong sign 0.03": (ours("online", "batch", 0.03), calibrated),
        "online DPO": (plain, online()),
        "online VPO 0.01": (ours("online", "batch", 0.01), online(calibrated=True)),
        "online VPO wrong sign 0.01": (
            ours("offline", "batch", 0.01),
            online(calibrated=True),
        ),
        "online XPO 0.01": (
            xpo.make(model, explore),
            online(calibrated=True, opponent="reference"),
        ),
    }


def curve(
    method: Method, source: DataSource, measure: Callable[[Any], dict], key: Key
) -> list[dict[str, float]]:
    """What is measured after each of `MARKS` steps."""
    state = jax.jit(lambda key: train.init(method, source, key))(key)
    found, before = [], 0
    advance = jax.jit(lambda state: train.run(method, source, state, 50)[0])
    for mark in MARKS:
        for _ in range((mark - before) // 50):
            state = advance(state)
        before = mark
        params = state.learner.params
        found.append({k: float(v) for k, v in measure(params).items()})
    return found


def one_seed(key: Key) -> dict[str, Any]:
    """All arms in one world."""
    keys = jax.random.split(key, 4)
    world = imitate(keys[0])
    measure = measurer(world, keys[1])
    best = float(markov.optimum(world.chain, BETA)[1])
    start = learner.init(sft.make(world.model), keys[0]).params
    found = {"optimum": best, "start": {k: float(v) for k, v in measure(start).items()}}
    found["arms"] = {}
    for name, (method, source) in arms(world, keys[2]).items():
        found["arms"][name] = curve(method, source, measure, keys[3])
        values = [round(x["value"], 2) for x in found["arms"][name]]
        print(f"{name:28s} {values} of {best:.2f}", flush=True)
    return found


def summary(runs: list[dict], name: str) -> list[dict[str, Any]]:
    """Means over seeds of everything, after each of `MARKS` steps."""
    return [
        {
            metric: common.mean([run["arms"][name][i][metric] for run in runs])
            for metric in ("value", "reward", "kl", "win_rate")
        }
        for i in range(len(MARKS))
    ]


def main() -> None:
    """Runs all seeds and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    keys = jax.random.split(jax.random.key(19), options.seeds)
    runs = []
    for key in keys:
        runs.append(one_seed(key))
        jax.clear_caches()
    content = {
        **records.origin("vpo.language"),
        "seeds": options.seeds,
        "steps": MARKS,
        "beta": BETA,
        "optimum": common.mean([run["optimum"] for run in runs]),
        "start": common.mean([run["start"]["value"] for run in runs]),
        "final_values": {
            name: [float(np.round(run["arms"][name][-1]["value"], 4)) for run in runs]
            for name in runs[0]["arms"]
        },
        "arms": {name: summary(runs, name) for name in runs[0]["arms"]},
    }
    records.write(common.RESULTS / "language.json", content)


if __name__ == "__main__":
    main()
