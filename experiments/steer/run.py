"""All arms in one world, from several seeds; each arm is written as it ends.

    python -m experiments.steer.run --seeds 0 1 2
    python -m experiments.steer.run --seeds 0 --arms "STEER" "SFT, filtered"

What is already in `results/seed_<n>.json` stays unless its arm is named. An arm is
learned from all seeds before the next one; none is begun after `--minutes`. With
`--kept FOLDER` the world and the texts of a seed are kept there for the next start.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import records
from experiments.steer import arms, measure
from experiments.steer import world as worlds
from experiments.steer.world import Asked, World
from rlx.data.reward_pool import best_rows
from rlx.ops.control_tokens import Rated
from rlx.ops.sequences import Sequences
from rlx.types import Key

RESULTS = Path(__file__).parent / "results"
BEST_OF, WORLD = 8, 100
PRODUCTS = {
    "product of experts": (worlds.STRENGTH, worlds.NUCLEUS),
    "product of experts, tuned": worlds.TUNED,
}
SIMPLE = ("copy", "the language itself", "paraphrase only", *PRODUCTS)
ORDER = ("SFT, filtered", "STEER", *SIMPLE, *arms.ARMS)


class Study:
    """A world, a seed's data as it is needed, and its record."""

    def __init__(self, seed: int, world: int, folder: Path, kept: Path | None) -> None:
        """Makes the world; reads what was recorded before."""
        self.path = folder / f"seed_{seed}.json"
        self.kept = kept
        self.prefix = f"seed {seed}"
        keys = jax.random.split(jax.random.key(seed), 5)
        self.keys = keys
        self.world: World = self.keep(
            f"world {world}", lambda: worlds.make(jax.random.key(world))
        )
        self.asked: Asked = worlds.ask(keys[1], self.world, measure.INPUTS)
        self.data: dict[str, tuple[Rated, Asked]] = {}
        self.seed, self.number = seed, world

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What was made before, or else is made now."""
        if self.kept is None:
            return make()
        path = self.kept / f"{name}.pickle"
        if not path.exists():
            self.kept.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(jax.device_get(make())))
        return jax.tree.map(
            lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x,
            pickle.loads(path.read_bytes()),
        )

    def key(self, name: str) -> Key:
        """Of an arm: its name decides, not its place."""
        number = sum((i + 1) * ord(c) for i, c in enumerate(name))
        return jax.random.fold_in(self.keys[2], number)

    def texts(self, kind: str) -> tuple[Rated, Asked]:
        """What the product of experts wrote, all or filtered."""
        anti = "none" if kind.endswith("no anti-expert") else "source"
        if kind not in self.data:
            rated, asked = self.keep(
                f"{self.prefix} texts {anti}",
                lambda: worlds.generated(self.keys[3], self.world, anti),
            )
            if kind != "unfiltered":
                value = jnp.prod(rated.metrics, axis=-1)
                rated = best_rows(rated, value, worlds.KEPT)
            self.data[kind] = (rated, asked)
        return self.data[kind]

    def record(self) -> dict[str, Any]:
        """What is known by now; another process may write as well."""
        if self.path.exists():
            return json.loads(self.path.read_text())
        return {"seed": self.seed, "world": self.number, "arms": {}}

    def write(self, name: str, found: dict[str, Any]) -> None:
        """Adds an arm to the record."""
        words = ["--seeds", str(self.seed), "--world", str(self.number)]
        content = {**self.record(), **records.origin("steer.run", words)}
        content["arms"][name] = found
        records.write(self.path, content)
        print(f"seed {self.seed}: {name}: V = {found['value']}", flush=True)


def untrained(study: Study, name: str) -> None:
    """Rows without learning: copies, the language itself, products of experts."""
    world, asked = study.world, study.asked
    if name == "copy":
        rows = measure.copied(asked)
    elif name == "the language itself":
        rows = measure.perfect(study.key("language"), world, asked)
    elif name == "paraphrase only":
        rows = experts(study.key("paraphrase"), study, (0.0, 1.0))
    else:
        keys = jax.random.split(study.key(name), BEST_OF)
        drawn = [experts(key, study, PRODUCTS[name]) for key in keys]
        best = best_of(study, drawn)
        study.write(f"{name}, best of 8", measure.report(world, best, asked))
        rows = drawn[0]
    study.write(name, measure.report(world, rows, asked))


def experts(key: Key, study: Study, numbers: tuple[float, float]) -> Sequences:
    """A text for each test input by a product of experts."""
    world = study.world
    parts = (world.paraphraser, world.bigrams)
    return worlds.poe(key, world.shape, parts, study.asked, numbers)


def best_of(study: Study, drawn: list[Sequences]) -> Sequences:
    """Of several texts for each input the one that the learned reward likes best."""
    score = jax.jit(lambda rows: worlds.proxy(study.world, rows, study.asked.style))
    value = np.stack([np.prod(np.asarray(score(rows)), axis=-1) for rows in drawn])
    best = np.argmax(value, axis=0)
    place = np.arange(len(best))
    return jax.tree.map(
        lambda *x: jnp.asarray(np.stack([np.asarray(y) for y in x])[best, place]),
        *drawn,
    )


def trained(study: Study, name: str, options: arms.Options) -> None:
    """Learns one arm, and measures it."""
    arm, begin = arms.ARMS[name], time.perf_counter()
    data = study.texts(arm.data)
    speaks, controls, seen = arms.learn(
        study.key(name), study.world, arm, data, options
    )
    best = controls.best(study.asked.style)
    rows = measure.answers(speaks, study.asked, best, study.keys[4])
    found = measure.report(study.world, rows, study.asked)
    if arm.metrics == 3:
        found["obedience"] = measure.obedience(
            study.world, speaks, controls, study.asked, study.key(f"{name}, levels")
        )
    seconds = round(time.perf_counter() - begin, 1)
    study.write(name, {**found, "seen": seen, "wall_seconds": seconds})


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--world", type=int, default=WORLD)
    parser.add_argument("--arms", nargs="*", default=None)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--kept", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--rate", type=float, default=arms.RATE)
    parser.add_argument("--control-rate", type=float, default=arms.CONTROL_RATE)
    parser.add_argument("--steps", type=int, default=arms.STEPS)
    given = parser.parse_args()
    options = arms.Options(given.rate, given.control_rate, given.steps)
    begin = time.perf_counter()
    studies = [
        Study(seed, given.world, given.folder, given.kept) for seed in given.seeds
    ]
    for name in dict.fromkeys(ORDER if given.arms is None else given.arms):
        for study in studies:
            known = given.arms is None and name in study.record()["arms"]
            if known or time.perf_counter() - begin > 60 * given.minutes:
                continue
            if name in SIMPLE:
                untrained(study, name)
            else:
                trained(study, name, options)


if __name__ == "__main__":
    main()
