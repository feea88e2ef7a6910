"""What sparse reading costs in accuracy: passkeys, several needles, perplexity.

    python -m experiments.lserve.accuracy heads --model recall
    python -m experiments.lserve.accuracy passkey --model recall
    python -m experiments.lserve.accuracy ablations --model recall
    python -m experiments.lserve.accuracy needles --model recall
    python -m experiments.lserve.accuracy perplexity --model recall

Two models: `induction` retrieves by construction, at any length; `recall` has learnt to
(`python -m experiments.lserve.recall`). `heads` comes first: it finds which of them
stream. All is read by the engine, `rlx.generation.engine`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.lserve import asking, induction, recall, tasks
from rlx.generation import calibration, heads
from rlx.generation.sparse import Sparse, plan
from rlx.networks import transformer
from rlx.types import Array, Key, Params

RESULTS = Path(__file__).parent / "results"
DEPTHS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Where a text's needles are: from its beginning to within reach of a window."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A model, and sizes that fit it."""

    config: transformer.Config
    params: Params
    texts: dict[int, int]
    """Lengths, and how many texts of each."""
    rate: float
    """Of other keys in the texts, of which there are 16."""
    page: int
    logical: int
    budget: int
    sink: int
    window: int
    ablated: int
    """The length of the ablations."""
    budgets: tuple[int, ...]
    """Of the ablations."""

    def text(self, length: int) -> tasks.Text:
        """How its texts are drawn."""
        return tasks.Text(length, keys=16, rate=self.rate)


def study(model: str, seed: int) -> Study:
    """Of one of the two models."""
    if model == "induction":
        return Study(
            induction.CONFIG,
            induction.params(),
            texts={2048: 8, 8192: 4, 16384: 2},
            rate=0.1,
            page=64,
            logical=16,
            budget=1024,
            sink=64,
            window=64,
            ablated=8192,
            budgets=(192, 512, 1024, 2048),
        )
    return Study(
        recall.CONFIG,
        recall.trained(seed),
        texts={256: 20, 512: 20, 1024: 20, 2048: 20},
        rate=0.1,
        page=16,
        logical=4,
        budget=128,
        sink=16,
        window=32,
        ablated=1024,
        budgets=(48, 64, 128, 256, 512),
    )


# ------------------------------------------------------------------------------- arms


def base(study: Study, found: heads.HeadMap) -> Sparse:
    """LServe as the paper has it, in sizes that fit the model."""
    return Sparse(
        heads=found,
        page_size=study.page,
        logical_size=study.logical,
        budget=study.budget,
        interval=4,
        bits=8,
    )


def baselines(study: Study, found: heads.HeadMap, room: int) -> dict[str, Sparse]:
    """What LServe is compared with, at the same number of words read."""
    narrow = heads.all_streaming(study.config, study.sink, study.budget - study.sink)
    return {
        "dense": asking.everything(room, study.page),
        "streaming": Sparse(narrow, study.page, study.logical, study.budget, 1),
        "quest": Sparse(None, study.logical, study.logical, study.budget, 1),
        "lserve": base(study, found),
    }


def ablations(study: Study, found: heads.HeadMap) -> dict[str, dict[str, Sparse]]:
    """One part of LServe changed at a time: by part, then by setting."""
    full = base(study, found)

    def change(**options: Any) -> Sparse:
        return dataclasses.replace(full, **options)

    page, room = study.page, study.ablated + 2
    sizes = sorted({max(page // 16, 1), page // 4, page // 2, page})
    return {
        "streaming heads": {"half": full, "none": change(heads=None)},
        "streaming heads, all pages": {
            "half": asking.everything(room, page, heads=found),
            "none": asking.everything(room, page),
        },
        "budget": {str(size): change(budget=size) for size in study.budgets},
        "logical page": {str(size): change(logical_size=size) for size in sizes},
        "physical page": {
            str(size): change(page_size=size) for size in (page // 4, page, 2 * page)
        },
        "bits": {str(bits or "float"): change(bits=bits) for bits in (None, 8, 4)},
    }


# ------------------------------------------------------------------------------ tasks


def passkeys(study: Study, length: int, key: Key) -> tuple[Array, Array, Array]:
    """One text, and one question for each depth."""
    words, asked, answers = _needles(study.text(length), key)
    return words, asked[:, None], answers[:, None]


@functools.partial(jax.jit, static_argnames=("text",))
def _needles(text: tasks.Text, key: Key) -> tuple[Array, Array, Array]:
    return tasks.needles(text, jnp.array(DEPTHS), key)


def several(
    study: Study, length: int, count: int, key: Key
) -> tuple[Array, Array, Array]:
    """One text, and rows of `count` questions that are asked back to back."""
    words, asked, answers = _needles(study.text(length), key)
    order = jax.vmap(lambda key: jax.random.permutation(key, len(DEPTHS))[:count])(
        jax.random.split(jax.random.fold_in(key, 1), len(DEPTHS))
    )
    return words, asked[order], answers[order]


def score(study: Study, sparse: Sparse, problems: list) -> dict[str, Any]:
    """Accuracy over all texts and, where there is one question a row, by depth."""
    made, begun = plan(study.config, sparse), time.perf_counter()
    found = [asking.ask(made, study.params, *problem) for problem in problems]
    right = np.stack([np.asarray(hits) for hits, _ in found])
    surprise = np.stack([np.asarray(surprises) for _, surprises in found])
    return {
        **asking.proportions(right),
        "answers": int(right.size),
        "surprise": round(float(surprise.mean()), 4),
        "by_row": [round(float(x), 4) for x in right.mean(axis=(0, 2))],
        "by_question": [round(float(x), 4) for x in right.mean(axis=(0, 1))],
        "seconds": round(time.perf_counter() - begun, 1),
    }


def drawn(make: Any, count: int, length: int) -> list:
    """Problems of one length; the same ones for every arm."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(17), length), count)
    return [make(key) for key in keys]


# ------------------------------------------------------------------------------ parts


def head_file(model: str, seed: int) -> Path:
    """Where the map of a model is kept, beside its checkpoint."""
    return recall.FOLDER / f"{model}-{seed}-{heads.NAME}"


def part_heads(study: Study, model: str, seed: int) -> dict[str, Any]:
    """Trains the gates, keeps the map."""
    length = 256
    batches = []
    for index in range(16):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(19), index), 2)
        words, asked, _ = jax.vmap(lambda key: _needles(study.text(length), key))(keys)
        tokens = jnp.concatenate([words, asked], axis=1)
        answers = jnp.broadcast_to(jnp.arange(tokens.shape[1]) >= length, tokens.shape)
        batches.append(calibration.Examples(tokens, answers))
    options = calibration.Options(
        steps=120, penalty=0.05, sink=study.sink, window=study.window
    )
    begun = time.perf_counter()
    found, report = calibration.calibrate(
        study.config, study.params, batches, jax.random.key(0), options
    )
    recall.FOLDER.mkdir(parents=True, exist_ok=True)
    heads.save(found, head_file(model, seed))
    none = heads.all_streaming(study.config, study.sink, study.window)
    worst = calibration.relative_error(study.config, study.params, batches[-1], none)
    return {
        "gates": np.round(report.gates, 4).tolist(),
        "retrieval": found.retrieval,
        "sink": found.sink,
        "window": found.window,
        "relative_error": report.error,
        "relative_error_if_all_stream": float(worst),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def part_passkey(study: Study, found: heads.HeadMap) -> dict[str, Any]:
    """Passkeys by length and depth, for the baselines."""
    rows: dict[str, Any] = {}
    for length, count in study.texts.items():
        problems = drawn(functools.partial(passkeys, study, length), count, length)
        for name, sparse in baselines(study, found, length + 2).items():
            rows.setdefault(name, {})[str(length)] = score(study, sparse, problems)
            print(name, length, rows[name][str(length)], flush=True)
    return {"depths": DEPTHS, "arms": rows}


def part_ablations(study: Study, found: heads.HeadMap) -> dict[str, Any]:
    """One part at a time, on passkeys."""
    length, rows = study.ablated, {}
    count = study.texts[length]
    problems = drawn(functools.partial(passkeys, study, length), count, length)
    for part, settings in ablations(study, found).items():
        rows[part] = {
            name: score(study, sparse, problems) for name, sparse in settings.items()
        }
        print(
            part, {name: row["share"] for name, row in rows[part].items()}, flush=True
        )
    return {"length": length, "parts": rows}


def part_needles(study: Study, found: heads.HeadMap) -> dict[str, Any]:
    """Four questions back to back, by reuse interval."""
    length, count, rows = study.ablated, 4, {}
    texts = study.texts[length] // 2
    problems = drawn(functools.partial(several, study, length, count), texts, length)
    arms = baselines(study, found, length + 2 * count)
    del arms["lserve"]
    for interval in (1, 2, 4, 8):
        arms[f"lserve, every {interval}"] = dataclasses.replace(
            base(study, found), interval=interval
        )
    for name, sparse in arms.items():
        rows[name] = score(study, sparse, problems)
        print(name, rows[name], flush=True)
    return {"length": length, "questions": count, "arms": rows}


def part_perplexity(study: Study, found: heads.HeadMap) -> dict[str, Any]:
    """Surprise by position, of all words and of values that were said before."""
    length, start, bins = 2048, 64, 31
    text = tasks.Text(length, rate=0.15)
    words, known = recall.draw(text, 8, jax.random.key(23))
    known, rows = np.asarray(known)[:, start:], {}
    edges = np.linspace(start, length, bins + 1)[1:]
    arms = baselines(study, found, length)
    arms["lserve, every 1"] = dataclasses.replace(arms["lserve"], interval=1)
    for name, sparse in arms.items():
        surprise = np.asarray(
            asking.read_on(plan(study.config, sparse), study.params, words, start)
        )
        every = surprise.reshape(len(words), bins, -1).mean(axis=(0, 2))
        recalled = (surprise * known).reshape(len(words), bins, -1).sum(axis=(0, 2))
        there = known.reshape(len(words), bins, -1).sum(axis=(0, 2))
        rows[name] = {
            "all": np.round(every, 4).tolist(),
            "known": np.round(recalled / np.maximum(there, 1), 4).tolist(),
            "perplexity": round(float(np.exp(surprise.mean())), 4),
            "perplexity_of_known": round(float(np.exp(surprise[known].mean())), 4),
        }
        print(name, {k: v for k, v in rows[name].items() if "per" in k}, flush=True)
    return {"ends": edges.tolist(), "texts": len(words), "arms": rows}


def main() -> None:
    """One part for one model, into `results/<part>-<model>-<seed>.json`."""
    parts = {
        "passkey": part_passkey,
        "ablations": part_ablations,
        "needles": part_needles,
        "perplexity": part_perplexity,
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["heads", *parts])
    parser.add_argument("--model", choices=["induction", "recall"], required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    made = study(given.model, given.seed)
    if given.part == "heads":
        found = part_heads(made, given.model, given.seed)
    else:
        found = parts[given.part](made, heads.load(head_file(given.model, given.seed)))
    settings = {
        field.name: getattr(made, field.name)
        for field in dataclasses.fields(made)
        if field.name not in ("config", "params")
    }
    name = f"{given.part}-{given.model}-{given.seed}.json"
    content = {**records.origin("lserve.accuracy"), "study": settings, **found}
    records.write(RESULTS / name, content)


if __name__ == "__main__":
    main()
