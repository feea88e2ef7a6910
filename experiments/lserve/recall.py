"""A small language model that has learnt to retrieve: training, and its checkpoint.

    python -m experiments.lserve.recall [--seed 0] [--minutes 10]

A decoder of two layers learns the texts of `experiments.lserve.tasks`, short ones
first. It stops after the minutes given and goes on from its checkpoint, which is kept
under `runs/` and not in the repository: the same command makes it again.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from experiments import records
from experiments.lserve import tasks
from rlx.networks import transformer
from rlx.types import Array, Key, Params

CONFIG = transformer.Config(
    vocabulary_size=tasks.WORDS,
    width=64,
    num_layers=2,
    num_heads=4,
    head_width=32,
    hidden_width=64,
    bias=True,
    rope_base=1e6,
    max_length=1 << 17,
)
FOLDER = Path("runs/lserve")
RESULTS = Path(__file__).parent / "results"
CHUNK = 20
"""Steps of one compiled call."""
STAGES = (
    # steps, rows, text
    (900, 64, tasks.Text(32, 4, 0.9)),
    (400, 16, tasks.Text(128, 8, 0.5)),
    (200, 4, tasks.Text(512, 16, 0.2)),
    (60, 2, tasks.Text(1024, 16, 0.15)),
)
HORIZON = 1700
"""Steps in which the rates would go down to a tenth."""
RATES = (0.02, 4e-3)
"""Of Muon, for matrices, and of Adam, for the rest."""
GAP = 5.0
"""By which the word before scores higher than its neighbours, in one head, at first."""
LARGER = 5.0
"""First matrices than a wide model's: of deviation 0.1, near 1 / sqrt(64)."""


def optimizer() -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024), warmed up, then down along a cosine.

    Adam learns the same, in several times as many steps.
    """
    matrices, rest = (
        optax.warmup_cosine_decay_schedule(0.0, rate, 50, HORIZON, rate / 10)
        for rate in RATES
    )

    def axes(params: Params) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: (
                optax.contrib.MuonDimensionNumbers(1, 2)
                if "kernel" in jax.tree_util.keystr(path)
                else None
            ),
            params,
        )

    return optax.contrib.muon(
        matrices,
        muon_weight_dimension_numbers=axes,
        adam_learning_rate=rest,
        adam_b2=0.98,
    )


def losses(params: Params, words: Array) -> Array:
    """`[B, T - 1]` negative log-likelihood of each word after the first."""
    logits = transformer.decoder(CONFIG).apply(params, words)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, words[:, 1:])


def draw(text: tasks.Text, rows: int, key: Key) -> tuple[Array, Array]:
    """`rows` texts and what is known in them."""
    return jax.vmap(functools.partial(tasks.text, text))(jax.random.split(key, rows))


@functools.partial(jax.jit, static_argnames=("stage",), donate_argnums=0)
def advance(state: tuple, key: Key, stage: int) -> tuple[tuple, Array]:
    """`CHUNK` steps of one stage: the state, and the last step's losses."""
    _, rows, text = STAGES[stage]

    def objective(params: Params, key: Key) -> tuple[Array, Array]:
        words, known = draw(text, rows, key)
        found = losses(params, words)
        answer = known[:, 1:]
        recalled = jnp.sum(found * answer) / jnp.sum(answer)
        metrics = jnp.stack([jnp.mean(found), recalled])
        return jnp.sum(metrics), metrics

    def step(state: tuple, key: Key) -> tuple[tuple, Array]:
        params, moments = state
        grads, metrics = jax.grad(objective, has_aux=True)(params, key)
        updates, moments = optimizer().update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), metrics

    return jax.lax.scan(step, state, jax.random.split(key, CHUNK))


def start(seed: int) -> tuple:
    """Parameters and the optimiser's state before the first step.

    One head of the first layer begins as one that looks at the word before, by its
    biases and the rotary angles alone; it is free to change. That words are matched to
    it, which is what retrieves, is learnt.
    """
    params = transformer.init(CONFIG, jax.random.fold_in(jax.random.key(seed), 0))
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x if "scale" in jax.tree_util.keystr(path) else LARGER * x,
        params,
    )
    width = CONFIG.head_size
    half = np.arange(width // 2)
    angles = CONFIG.rope_base ** (-2 * half / width)
    weight = 1.0 - half / len(half)
    apart = np.sum(weight * (1 - np.cos(angles)))  # of one word from its neighbour
    size = np.sqrt(GAP * np.sqrt(width) * weight / apart)
    before = np.concatenate([size * np.cos(angles), size * np.sin(angles)])
    for name, bias in (("query", size), ("key", before)):
        layer = params["layers"][name]
        layer["bias"] = layer["bias"].at[0, : len(bias)].set(bias)
    return params, optimizer().init(params)


def checkpoint(seed: int, folder: Path = FOLDER) -> Path:
    """Where the model of a seed is kept."""
    return folder / f"recall-{seed}.npz"


def save(file: Path, state: Any, step: int, rows: list) -> None:
    """Writes all leaves, how many steps were made and how they went."""
    file.parent.mkdir(parents=True, exist_ok=True)
    leaves = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    part = file.with_suffix(".part.npz")
    np.savez(part, step=step, curve=np.array(rows).reshape(-1, 4), **leaves)
    part.replace(file)


def load(file: Path, seed: int) -> tuple[Any, int, list]:
    """What `save` wrote, or the beginning."""
    state = start(seed)
    if not file.exists():
        return state, 0, []
    with np.load(file) as content:
        shape = jax.tree.structure(state)
        leaves = [jnp.asarray(content[f"leaf{i}"]) for i in range(shape.num_leaves)]
        rows = content["curve"].tolist()
        return jax.tree.unflatten(shape, leaves), int(content["step"]), rows


def trained(seed: int, folder: Path = FOLDER) -> Params:
    """The parameters of a model whose training has ended.

    Raises:
      SystemExit: there is none; it says how to make it.
    """
    state, step, _ = load(checkpoint(seed, folder), seed)
    if step < sum(steps for steps, *_ in STAGES):
        raise SystemExit(
            f"the model of seed {seed} has {step} steps: run "
            f"`python -m experiments.lserve.recall --seed {seed}` until it ends"
        )
    return state[0]


def train(seed: int, minutes: float, folder: Path = FOLDER) -> bool:
    """Goes on until the end or for some minutes; whether it has ended."""
    file, begun = checkpoint(seed, folder), time.perf_counter()
    state, step, rows = load(file, seed)
    key, ends = (
        jax.random.fold_in(jax.random.key(seed), 1),
        np.cumsum([steps for steps, *_ in STAGES]),
    )
    while step < ends[-1]:
        stage = int(np.searchsorted(ends, step, side="right"))
        state, metrics = advance(state, jax.random.fold_in(key, step), stage)
        step += CHUNK
        mean, recalled = np.asarray(metrics).mean(axis=0)
        rows.append([step, stage, float(mean), float(recalled)])
        if step % 100 == 0 or step == ends[-1]:
            spent = time.perf_counter() - begun
            print(
                f"{step} stage {stage} {mean:.3f} {recalled:.3f} {spent:.0f} s",
                flush=True,
            )
            save(file, state, step, rows)
        if time.perf_counter() - begun > 60 * minutes:
            break
    save(file, state, step, rows)
    return step >= ends[-1]


def main() -> None:
    """Trains, and writes the curve once it has ended."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    if train(options.seed, options.minutes):
        _, _, rows = load(checkpoint(options.seed), options.seed)
        words = ["--seed", str(options.seed)]
        content = {
            **records.origin("lserve.recall", words),
            "columns": ["step", "stage", "loss", "loss of what is known"],
            "curve": [[round(x, 4) for x in row] for row in rows],
        }
        records.write(RESULTS / f"recall-{options.seed}.json", content)


if __name__ == "__main__":
    main()
