"""Turns per second of the vmapped simulator, and of one with sets in plain Python.

    python -m experiments.unicorn.speed lastfm.npz

Both hold conversations in which every allowed action is equally likely, and work out
what an agent sees: candidates, scores, the weighted entropy of every question and the
best items. The plain one leaves scores to NumPy. Only turns of conversations that are
not over are counted. Rounds alternate, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs import conversation
from envs.conversation import embedding, files
from experiments.records import origin, write

RESULTS = Path(__file__).parent / "results"


def vmapped(env: Any, number: int) -> Any:
    """`key -> turns held`, compiled; `number` conversations at a time."""

    def turn(carry: Any, key: Any) -> Any:
        state, seen, over = carry
        logits = jnp.where(seen.action_mask, 0.0, -jnp.inf)
        slot = jax.random.categorical(key, logits)
        state, new = jax.vmap(lambda s, a: env.step(s, a, None))(state, slot)
        return (state, new.observation, over | new.terminated), jnp.sum(~over)

    @jax.jit
    def hold(key: Any) -> Any:
        reset_key, key = jax.random.split(key)
        start = jax.vmap(env.reset)(jax.random.split(reset_key, number))
        keys = jax.random.split(key, env.spec.time_limit)
        return jnp.sum(jax.lax.scan(turn, (*start, jnp.zeros(number, bool)), keys)[1])

    return hold


class Plain:
    """The simulator with Python's sets."""

    def __init__(self, catalogue: conversation.Catalogue, limit: int) -> None:
        """Unpacks the catalogue."""
        self.of = [set(np.flatnonzero(x).tolist()) for x in catalogue.links.has]
        self.users, self.items, self.attributes, self.pairs = (
            np.asarray(x)
            for x in (
                catalogue.user_embedding,
                catalogue.item_embedding,
                catalogue.attribute_embedding,
                catalogue.interactions,
            )
        )
        self.limit = limit

    def see(self, user: int, yes: set, no: set, left: set) -> tuple[list, list]:
        """The ten best items and the ten best questions."""
        wanted = self.users[user] + self.attributes[list(yes)].sum(axis=0)
        score = self.items @ wanted
        against = self.items @ self.attributes.T
        total, sums = 0.0, dict.fromkeys(range(len(self.attributes)), 0.0)
        worth = {}
        for v in left:
            worth[v] = score[v] - sum(against[v, p] for p in no & self.of[v])
            weight = 1 / (1 + np.exp(-worth[v]))
            total += weight
            for p in self.of[v]:
                sums[p] += weight
        bits = {}
        for p, weight in sums.items():
            q = min(weight / total, 1.0)
            if q > 0 and p not in yes and p not in no:
                rest = 1 - q
                bits[p] = -q * np.log2(q) - (rest * np.log2(rest) if rest > 0 else 0)
        best = sorted(worth, key=worth.__getitem__, reverse=True)[:64]
        return best[:10], sorted(bits, key=bits.__getitem__, reverse=True)[:10]

    def hold(self, generator: np.random.Generator) -> int:
        """One conversation; how many turns it took."""
        user, target = self.pairs[generator.integers(len(self.pairs))].tolist()
        yes, no = {int(generator.choice(sorted(self.of[target])))}, set()
        left = {v for v, mine in enumerate(self.of) if yes <= mine}
        listed, asked = self.see(user, yes, no, left)
        for turn in range(1, self.limit + 1):
            slot = generator.integers(len(listed) + len(asked))
            if slot < len(listed) and target in listed:
                return turn
            if slot < len(listed):
                left -= set(listed)
            elif asked[slot - len(listed)] in self.of[target]:
                yes.add(asked[slot - len(listed)])
                left = {v for v in left if yes <= self.of[v]}
            else:
                no.add(asked[slot - len(listed)])
            listed, asked = self.see(user, yes, no, left)
        return self.limit


def main() -> None:
    """Measures and writes `results/speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help=".npz of edge lists")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--conversations", type=int, nargs="+", default=[64, 256, 1024])
    arguments = parser.parse_args()
    lists = files.load(arguments.data, groups=True)
    known = embedding.facts(lists)
    catalogue = conversation.catalogue(
        lists.item_attribute,
        **embedding.cold_aware(known, embedding.als(known))._asdict(),
        interactions=lists.interactions["valid"],
    )
    env = conversation.make(catalogue)
    plain, generator = Plain(catalogue, env.spec.time_limit), np.random.default_rng(0)
    runs = {n: vmapped(env, n) for n in arguments.conversations}
    for run in runs.values():
        run(jax.random.key(0)).block_until_ready()
    found: dict[str, list[float]] = {"plain": [], **{str(n): [] for n in runs}}
    for seed in range(arguments.rounds):
        started = time.perf_counter()
        turns = sum(plain.hold(generator) for _ in range(10))
        found["plain"].append(turns / (time.perf_counter() - started))
        for number, run in runs.items():
            started = time.perf_counter()
            turns = int(run(jax.random.key(seed)))
            found[str(number)].append(turns / (time.perf_counter() - started))
    speed = {name: float(np.median(x)) for name, x in found.items()}
    words = [arguments.data.name, *sys.argv[2:]]
    made = origin("unicorn.speed", words)
    ratio = {n: x / speed["plain"] for n, x in speed.items() if n != "plain"}
    content = {"turns_per_second": speed, "ratio": ratio, "rounds": found, **made}
    write(RESULTS / "speed.json", content)
    print(speed, ratio)


if __name__ == "__main__":
    main()
