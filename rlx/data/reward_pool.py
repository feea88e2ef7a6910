"""A growing pool of rated texts, behind words that name their reward: Quark's, STEER's.

Lu et al. 2022, https://arxiv.org/abs/2205.13636; Hallinan et al. 2023,
https://arxiv.org/abs/2311.07167.

    controls = Controls(num_words=V, num_metrics=3, num_styles=S, num_bins=5)
    start = best_rows(Rated(rows, style, metrics), value, count)     # filtered texts
    source = pool(
        start,
        prompts,                       # Prompts [P, L] for fresh texts of the policy
        controls=controls,
        score=score,                   # (Sequences [R, L + T], style [R]) -> [R, 3]
        settings=Settings(batch_size=64, capacity=2**14, every=100, rollouts=512),
    )
    spec = rlx.generation.controlled.decoder(config, params, controls, key, sampling)
    state, metrics = train.run(steer.make(spec), source, state, 1000)

Every `every` batches, after the first `offline`, the policy answers `rollouts` prompts
behind the best words of random styles; the answers are rated and put into the pool, all
of which is binned anew, exactly. With `every=0` nothing is ever added: the offline
phase alone. The whole pool is part of the state of a run and of its checkpoints.

Each style has an equal part of the capacity. Beyond it a uniform sample of all that was
ever offered is kept ("reservoir"), or the newest ("ring"). The paper keeps everything:
either, with enough capacity.

Many seeds under one `vmap` cannot skip the rollouts of the batches between and pay for
them: run seeds one after the other, or in processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rlx.data.prompts import Prompts
from rlx.ops import reward_pool as pools
from rlx.ops.control_tokens import Controlled, Controls, Rated, prepended
from rlx.ops.reward_pool import KEEPS, Pool
from rlx.ops.sequences import Sequences, joined
from rlx.types import Array, DataSource, Key, Metrics, Policy, PyTree

Score: TypeAlias = Callable[[Sequences, Array], Array]
"""`(rows [R, L + T], style int[R]) -> float[R, M]`."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the pool grows and what is drawn from it.

    Raises:
      ValueError: a number out of its range.
    """

    batch_size: int
    """Rows in a batch, drawn with replacement."""
    capacity: int
    """Rows of all styles together; a multiple of their number."""
    every: int = 0
    """Batches between rounds of fresh texts; 0: never."""
    rollouts: int = 0
    """Fresh texts in a round."""
    offline: int = 0
    """Batches before the first round, for words that shall first be understood."""
    keep: str = "reservoir"
    """Or "ring"."""
    balanced: bool = False
    """Draw a style first, then a row of it; else all rows are equally likely."""
    ties: str = "order"
    """Of equal rewards, see `assign_bins`."""
    stop_token: int | None = None
    """Put in place of the last token of an answer that was cut off, before it is rated,
    so that the policy learns to stop."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.capacity < 1:
            raise ValueError(
                f"batch_size={self.batch_size} and capacity={self.capacity} must be "
                "positive"
            )
        if min(self.every, self.rollouts, self.offline) < 0 or bool(self.every) != bool(
            self.rollouts
        ):
            raise ValueError(
                f"every={self.every} and rollouts={self.rollouts}: set both, or "
                "neither for an offline pool"
            )
        if self.keep not in KEEPS:
            raise ValueError(f"keep must be one of {KEEPS}, got {self.keep!r}")


def pool(
    start: Rated,
    prompts: Prompts,
    *,
    controls: Controls,
    score: Score,
    settings: Settings,
    source_style: Array | None = None,
) -> DataSource:
    """Batches of `Controlled` rows from a pool that the policy itself feeds.

    A reward that is no finite number is never binned: its row stays out, the metric
    `bad_row` is its place among the prompts (else −1), and the batch's metrics are NaN,
    at which `fit` stops.

    Args:
      start: `[N, ...]` the first rows, of every style at least one.
      prompts: `[P, L]` what the policy is asked in rounds, without control words.
      controls: the words.
      score: rates fresh texts; its gradient is never taken.
      settings: sizes.
      source_style: `int[P]` of the prompts: they are rewritten in other styles; None:
        in any.

    Raises:
      ValueError: a reward of the start is not finite (names the row), a style has no
        row, or shapes do not fit.
    """
    _check(start, prompts, controls, settings, source_style)

    def over(arrays: tuple[Rated, Prompts, Array | None]) -> DataSource:
        first, asked, spoken = arrays

        def init(key: Key, policy: Policy) -> Pool:
            del policy
            everything = jnp.ones(first.style.shape, bool)
            new = pools.empty(first, controls, settings.capacity)
            new = pools.insert(new, first, everything, key, settings.keep)
            new = new.replace(latest=jnp.mean(first.metrics, axis=0))
            return pools.binned(new, controls, settings.ties)

        def fresh(policy: Policy, key: Key) -> tuple[Rated, Array]:
            prompt_key, style_key, answer_key = jax.random.split(key, 3)
            shape = (settings.rollouts,)
            which = jax.random.randint(prompt_key, shape, 0, len(asked.tokens))
            style = _targets(style_key, controls.num_styles, which, spoken)
            tokens, mask = asked.tokens[which], asked.mask[which]
            row, there = prepended(controls.best(style), tokens, mask)
            observation = {"tokens": row, "mask": there}
            answer, _, _ = policy.act(observation, (), answer_key)
            said = _stopped(answer["tokens"], answer["mask"], settings.stop_token)
            rows = joined(tokens, mask, said, answer["mask"])
            rating = jax.lax.stop_gradient(score(rows, style)).astype(jnp.float32)
            return Rated(rows, style, rating), which

        def grown(state: Pool, policy: Policy, key: Key) -> tuple[Pool, Array]:
            fresh_key, insert_key = jax.random.split(key)
            new, which = fresh(policy, fresh_key)
            good = jnp.all(jnp.isfinite(new.metrics), axis=-1)
            rating = jnp.where(good[:, None], new.metrics, 0.0)
            latest = jnp.sum(rating, axis=0) / jnp.maximum(jnp.sum(good), 1)
            new = new.replace(metrics=rating)
            state = pools.insert(state, new, good, insert_key, settings.keep)
            state = pools.binned(state.replace(latest=latest), controls, settings.ties)
            bad = jnp.where(jnp.all(good), -1, which[jnp.argmin(good)])
            return state, bad.astype(jnp.int32)

        def following(
            state: Pool, policy: Policy, key: Key
        ) -> tuple[Pool, Controlled, Metrics]:
            grow_key, draw_key = jax.random.split(key)
            bad = jnp.int32(-1)
            if settings.every:
                due = state.batches >= max(settings.offline, 1)
                due = due & (state.batches % settings.every == 0)
                state, bad = jax.lax.cond(
                    due,
                    lambda state: grown(state, policy, grow_key),
                    lambda state: (state, jnp.int32(-1)),
                    state,
                )
            chosen = pools.draw(state, draw_key, settings.batch_size, settings.balanced)
            rows = jax.tree.map(lambda x: x[chosen], state.rows)
            words = controls.tokens(rows.style, state.bins[chosen])
            rating = jnp.where(bad >= 0, jnp.nan, rows.metrics)
            found = {f"rollout_reward_{k}": x for k, x in enumerate(state.latest)}
            found = {**found, "rows": jnp.sum(state.counts), "bad_row": bad}
            state = state.replace(batches=state.batches + 1)
            return state, Controlled(rows.sequences, words, rating), found

        return DataSource(init=init, next=following, arrays=arrays, over=over)

    return over(jax.tree.map(jnp.asarray, (start, prompts, source_style)))


def best_rows(rated: Rated, value: Array, count: int) -> Rated:
    """The `count` rows of greatest `value` `[N]` of each style; fewer where there are.

    The filter of Hallinan et al. 2023. On the host.

    Raises:
      ValueError: a value is no finite number.
    """
    worth, style = np.asarray(value), np.asarray(rated.style)
    _require_finite(worth[:, None], "value")
    order = np.argsort(-worth, kind="stable")
    kept = [order[style[order] == s][:count] for s in np.unique(style)]
    chosen = np.concatenate(kept)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[chosen]), rated)


def _targets(key: Key, styles: int, which: Array, spoken: Array | None) -> Array:
    """A random style for each prompt, not its own where that is known."""
    if spoken is None:
        return jax.random.randint(key, which.shape, 0, styles)
    other = jax.random.randint(key, which.shape, 0, styles - 1)
    return other + (other >= spoken[which])


def _stopped(tokens: Array, mask: Array, stop_token: int | None) -> Array:
    if stop_token is None:
        return tokens
    last = jnp.where(mask[:, -1], stop_token, tokens[:, -1])
    return tokens.at[:, -1].set(last)


def _require_finite(values: np.ndarray, name: str) -> None:
    bad = np.flatnonzero(~np.all(np.isfinite(values), axis=-1))
    if bad.size:
        raise ValueError(
            f"the {name} of row {bad[0]} is not finite ({values[bad[0]]}; there are "
            f"{bad.size} such rows): drop or mend them first"
        )


def _check(
    start: Rated,
    prompts: Prompts,
    controls: Controls,
    settings: Settings,
    source_style: PyTree,
) -> None:
    metrics, style = np.asarray(start.metrics), np.asarray(start.style)
    if metrics.shape != (len(style), controls.num_metrics):
        raise ValueError(
            f"rewards have shape {metrics.shape}, control words speak of "
            f"{controls.num_metrics} metrics: both must agree"
        )
    _require_finite(metrics, "reward")
    known = (style >= 0) & (style < controls.num_styles)
    counts = np.bincount(style[known], minlength=controls.num_styles)
    if not np.all(known) or np.any(counts == 0):
        raise ValueError(
            f"every style 0 … {controls.num_styles - 1} needs a first row, since words "
            f"that were never read steer nothing; there are {counts.tolist()} of them, "
            f"and {int(np.sum(~known))} rows of no such style"
        )
    if len(prompts.tokens) < 1:
        raise ValueError("there are no prompts")
    if source_style is not None and controls.num_styles < 2:
        raise ValueError("a text cannot be rewritten in another style: there is one")
    if source_style is not None and len(source_style) != len(prompts.tokens):
        raise ValueError(
            f"{len(prompts.tokens)} prompts, but {len(source_style)} styles of theirs"
        )
    longest = start.sequences.tokens.shape[1]
    if prompts.tokens.shape[1] >= longest:
        raise ValueError(
            f"prompts of {prompts.tokens.shape[1]} tokens leave no room for answers in "
            f"rows of {longest}"
        )
