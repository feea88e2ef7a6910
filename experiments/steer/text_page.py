"""What is measured of rewrites of real text, and the page and picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.steer.text_world import World
from rlx import text_rewards
from rlx.data import style_corpus
from rlx.ops.sequences import Sequences

SHOWN, RESAMPLES = 4, 2000
"""Sentences of each direction that are kept to be read; draws of the bootstrap."""
METRICS = ("strength", "similarity", "fluency", "value")
EXTRA = ("right style", "copied", "length ratio", "perplexity", "rewarded value")
ARMS = ("copy", "paraphrase", "product of experts", "SFT", "STEER")
PAIRS = (("STEER", "SFT"), ("SFT", "product of experts"), ("STEER", "paraphrase"))


def measured(world: World, rows: Sequences, asked: Any) -> dict[str, Any]:
    """All numbers of one arm, by the held-out judges, and some of its sentences."""
    held_out = jax.jit(world.score(world.learned.held_out))(rows, asked.style)
    own = jax.jit(world.score(world.learned.judges))(rows, asked.style)
    each = {
        **dict(zip(text_rewards.METRICS, np.asarray(held_out).T, strict=True)),
        "value": np.prod(np.asarray(held_out), axis=1),
        "rewarded value": np.prod(np.asarray(own), axis=1),
        **_plain(world, rows, asked),
    }
    directions = {
        f"{world.styles[one]} to {world.styles[two]}": round(
            float(np.mean(each["value"][_direction(asked, one, two)])), 4
        )
        for one in range(len(world.styles))
        for two in range(len(world.styles))
        if one != two
    }
    perplexity = each.pop("perplexity")
    metrics = {name: _interval(values) for name, values in each.items()}
    metrics["perplexity"] = {"mean": float(np.exp(np.mean(perplexity)))}
    return {
        "metrics": metrics,
        "distinct_2": _distinct(rows, world),
        "value_by_direction": directions,
        "values_in_thousandths": np.rint(1000 * each["value"]).astype(int).tolist(),
        "sentences": _sentences(world, rows, asked),
    }


def _plain(world: World, rows: Sequences, asked: Any) -> dict[str, np.ndarray]:
    """What needs no judge's opinion of quality."""
    size = world.size.source
    source = np.asarray(rows.tokens[:, :size])
    source_mask = np.asarray(rows.mask[:, :size]) & (source > world.begin)
    answer = np.asarray(rows.tokens[:, size:])
    said = np.asarray(rows.response[:, size:])
    words = said & (answer > world.begin)
    pairs = zip(source, source_mask, answer, words, strict=True)
    same = [np.array_equal(a[m], b[n]) for a, m, b, n in pairs]
    chosen = text_rewards.Settings(
        len(world.styles),
        world.tokenizer.vocabulary_size,
        world.begin,
        width=world.size.judge_filters,
    )
    network = text_rewards.networks(chosen)[0]
    logits = jax.jit(network.apply)(
        world.learned.held_out.strength, jnp.asarray(answer), mask=jnp.asarray(words)
    )
    right = np.asarray(jnp.argmax(logits, axis=1) == asked.style)
    before = np.pad(answer, ((0, 0), (1, 0)), constant_values=world.begin)[:, :-1]
    table = world.learned.held_out_bigrams
    each = np.asarray(table[np.asarray(asked.style)[:, None], before, answer])
    price = -np.sum(each * said, axis=1) / np.maximum(said.sum(axis=1), 1)
    return {
        "right style": right.astype(float),
        "copied": np.array(same, float),
        "length ratio": words.sum(axis=1) / source_mask.sum(axis=1),
        "perplexity": price,
    }


def _direction(asked: Any, one: int, two: int) -> np.ndarray:
    return np.asarray((asked.source_style == one) & (asked.style == two))


def _interval(values: np.ndarray) -> dict[str, float]:
    """Mean over inputs with a 95 % bootstrap interval."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    mean = float(np.mean(values))
    return {
        k: round(float(v), 4)
        for k, v in zip(("mean", "low", "high"), (mean, low, high), strict=True)
    }


def _distinct(rows: Sequences, world: World) -> float:
    """Different pairs of neighbours in a share of all pairs."""
    answer = np.asarray(rows.tokens[:, world.size.source :])
    said = np.asarray(rows.response[:, world.size.source :]) & (answer > world.begin)
    both = said[:, :-1] & said[:, 1:]
    pairs = np.stack([answer[:, :-1][both], answer[:, 1:][both]], axis=1)
    return round(len(np.unique(pairs, axis=0)) / max(len(pairs), 1), 4)


def _sentences(world: World, rows: Sequences, asked: Any) -> list[dict[str, str]]:
    size, found = world.size.source, []
    tokens, there = np.asarray(rows.tokens), np.asarray(rows.mask)
    for one in range(len(world.styles)):
        for two in range(len(world.styles)):
            for row in np.flatnonzero(_direction(asked, one, two))[:SHOWN]:
                halves = (slice(0, size), slice(size, None))
                source, answer = (
                    style_corpus.text_of(world.tokenizer, tokens[row, h][there[row, h]])
                    for h in halves
                )
                names = (world.styles[one], world.styles[two])
                found.append(
                    {"from": names[0], "to": names[1], "source": source, "said": answer}
                )
    return found


# ------------------------------------------------------------------------------- page


def write(runs: list[dict[str, Any]], results: Path) -> None:
    """Joins the seeds: `text.json`, a table and sentences, a picture."""
    if not runs:
        raise SystemExit("no seeds in results/: run `experiments.steer.text run` first")
    arms = {arm: _joined([run["arms"][arm] for run in runs]) for arm in ARMS}
    apart = {f"{one} - {two}": _apart(runs, one, two) for one, two in PAIRS}
    content = {
        **records.origin("steer.text", ["page"]),
        "seeds": [run["seed"] for run in runs],
        "environment_of_seeds": [run["environment"] for run in runs],
        "styles": runs[0]["styles"],
        "plan": runs[0]["plan"],
        "world": runs[0]["world"],
        "arms": arms,
        "differences_of_value": apart,
        "seconds_of_seeds": [run["seconds"] for run in runs],
    }
    records.write(results / "text.json", content)
    (results / "text.md").write_text(_page(content, runs[0]))
    _draw(content, results / "text.png")


def _joined(arms: list[dict[str, Any]]) -> dict[str, Any]:
    names = arms[0]["metrics"]
    means = {n: [arm["metrics"][n]["mean"] for arm in arms] for n in names}
    found = {
        name: {"mean": float(np.mean(x)), "min": min(x), "max": max(x)}
        for name, x in means.items()
    }
    values = np.array([arm["values_in_thousandths"] for arm in arms]) / 1000
    low, high = _resampled(values)
    found["value"] |= {"low": low, "high": high}
    found["distinct 2"] = {"mean": float(np.mean([arm["distinct_2"] for arm in arms]))}
    by_direction = {
        name: round(
            float(np.mean([arm["value_by_direction"][name] for arm in arms])), 4
        )
        for name in arms[0]["value_by_direction"]
    }
    return {"metrics": found, "value_by_direction": by_direction}


def _apart(runs: list[dict[str, Any]], one: str, two: str) -> dict[str, float]:
    first, second = (
        np.array([run["arms"][arm]["values_in_thousandths"] for run in runs]) / 1000
        for arm in (one, two)
    )
    low, high = _resampled(first - second)
    return {"mean": float(np.mean(first - second)), "low": low, "high": high}


def _resampled(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `[seeds, inputs]`, inputs and seeds drawn anew."""
    generator, (seeds, inputs) = np.random.default_rng(0), values.shape
    found = []
    for _ in range(RESAMPLES):
        rows = generator.integers(0, seeds, seeds)
        columns = generator.integers(0, inputs, inputs)
        found.append(values[rows].mean(axis=0)[columns].mean())
    low, high = np.percentile(found, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def _page(content: dict[str, Any], run: dict[str, Any]) -> str:
    count = len(content["seeds"])
    lines = [
        "# Sentences of three styles, rewritten in the two others",
        "",
        f"Means over {count} seed{'s' if count > 1 else ''}, by judges that no arm was "
        "rewarded by. Made by",
        f"`{content['command']}`.",
        "",
        "| | " + " | ".join((*METRICS, *EXTRA, "distinct 2")) + " |",
        "|---" * (len(METRICS) + len(EXTRA) + 2) + "|",
    ]
    for arm in ARMS:
        found = content["arms"][arm]["metrics"]
        cells = [f"{found[n]['mean']:.3g}" for n in (*METRICS, *EXTRA, "distinct 2")]
        value = found["value"]
        cells[3] += f" ({value['low']:.3g} to {value['high']:.3g})"
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", "| difference of value | mean | 95 % interval |", "|---|---|---|"]
    for name, row in content["differences_of_value"].items():
        lines.append(
            f"| {name} | {row['mean']:+.3f} | {row['low']:+.3f} to {row['high']:+.3f} |"
        )
    lines += ["", f"## Sentences (seed {run['seed']}, the first of the test)", ""]
    shown = [run["arms"][arm]["sentences"] for arm in ARMS]
    for rows in zip(*shown, strict=True):
        first = rows[0]
        lines += [f"**{first['from']} to {first['to']}**: {first['source']}", ""]
        pairs = zip(ARMS[1:], rows[1:], strict=True)
        lines += [f"- {arm}: {row['said']}" for arm, row in pairs]
        lines.append("")
    return "\n".join(lines)


def _draw(content: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = ("#999999", "#E69F00", "#56B4E9", "#D55E00", "#0072B2")
    place = np.arange(len(METRICS))
    for i, (arm, colour) in enumerate(zip(ARMS, colours, strict=True)):
        found = content["arms"][arm]["metrics"]
        means = [found[name]["mean"] for name in METRICS]
        spread = [
            [found[n]["mean"] - found[n]["min"] for n in METRICS],
            [found[n]["max"] - found[n]["mean"] for n in METRICS],
        ]
        left.bar(place + 0.16 * (i - 2), means, 0.15, color=colour, label=arm)
        left.errorbar(
            place + 0.16 * (i - 2), means, spread, fmt="none", ecolor="#333333", lw=1
        )
    left.set_xticks(place, METRICS)
    left.set(ylim=(0, 1.05), title="held-out judges (bars: least and greatest seed)")
    left.legend(frameon=False, fontsize=7, ncols=2, loc="upper right")
    directions = list(content["arms"]["STEER"]["value_by_direction"])
    rows = np.arange(len(directions))
    for i, (arm, colour) in enumerate(zip(ARMS, colours, strict=True)):
        found = content["arms"][arm]["value_by_direction"]
        values = [found[name] for name in directions]
        right.plot(values, rows + 0.08 * (i - 2), "o", color=colour, ms=5)
    right.set_yticks(rows, directions, fontsize=8)
    right.set(title="value by direction", xlim=(0, None))
    right.invert_yaxis()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
