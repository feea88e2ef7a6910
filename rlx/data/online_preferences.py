"""Pairs that the policy itself has drawn, labelled as they come: online preferences.

What online DPO (Guo et al. 2024, https://arxiv.org/abs/2402.04792), online VPO (Cen et
al. 2024, https://arxiv.org/abs/2405.19320) and XPO (Xie et al. 2024,
https://arxiv.org/abs/2405.21046) learn from; they differ in who speaks:

| | second response | calibration |
|---|---|---|
| online DPO | the policy's | none |
| online VPO | the policy's | the reference's, a third response |
| XPO | the reference's | the same response again |

The second column is `opponent`, the third `calibrated`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from rlx.data.language import Preferences, Sequences, joined
from rlx.data.prompts import Prompts, Responses, respond
from rlx.generation.language_model import LanguageModel
from rlx.ops import preference
from rlx.ops.sequences import Calibrated
from rlx.types import Array, DataSource, Key, Metrics, Policy, PyTree

OPPONENTS = ("policy", "reference")
BRADLEY_TERRY = preference.Teacher(rationality=1.0)
"""The first is preferred with probability σ(r₁ − r₂)."""
Batch = Preferences | Calibrated


@struct.dataclass
class Memory:
    """The last pairs, oldest overwritten."""

    rows: Batch
    """`[capacity, ...]`."""
    cursor: Array
    """`int32[]` the row that is written next."""
    size: Array
    """`int32[]` rows written so far, at most the capacity."""


def pairs(  # noqa: PLR0913 (the front door: everything is given by name)
    prompts: Prompts,
    *,
    batch_size: int,
    score: Callable[[Sequences], Array],
    reference: LanguageModel | None = None,
    opponent: str = "policy",
    calibrated: bool = False,
    capacity: int = 0,
    teacher: preference.Teacher = BRADLEY_TERRY,
) -> DataSource:
    """Batches of labelled pairs: prompts at random, two responses to each, a choice.

    Pairs of the same response twice, and those that the teacher does not decide, have
    weight 0; the metric `identical` says how many are the former.

    Args:
      prompts: `[N, L]`.
      batch_size: fresh pairs in a batch, or rows of the memory.
      score: `(Sequences [B, L + T]) -> [B]` what the teacher judges by, such as a
        reward model; its gradient is never taken.
      reference: its sampler and its reference parameters speak for the reference.
      opponent: who gives the second response, "policy" or "reference".
      calibrated: batches are `Calibrated` by the reference, see above.
      capacity: 0: a batch is the fresh pairs. Else fresh pairs go into a memory of that
        many and a batch is drawn from all that it holds; a multiple of `batch_size`.
      teacher: who labels, see `rlx.ops.preference`.

    Raises:
      ValueError: an unknown opponent, a capacity that is no multiple of the batch, or
        no reference that can speak where one is needed.
    """
    _check(reference, opponent, calibrated, batch_size, capacity)
    samples = 2 if opponent == "policy" else 1

    def over(arrays: tuple[Prompts, PyTree]) -> DataSource:
        asked, params = arrays
        drawn = respond(asked, batch_size=batch_size, samples=samples, score=score)

        def said_by_reference(prompt: Array, key: Key) -> tuple[Sequences, Array]:
            tokens, mask = asked.tokens[prompt], asked.mask[prompt]
            assert reference is not None and reference.sampler is not None  # checked
            found = reference.sampler(params, tokens, mask, key)
            rows = joined(tokens, mask, found.tokens, found.mask)
            return rows, jax.lax.stop_gradient(score(rows)).astype(jnp.float32)

        def fresh(policy: Policy, key: Key) -> tuple[Batch, Metrics]:
            draw_key, reference_key, label_key = jax.random.split(key, 3)
            _, found, metrics = drawn.next((), policy, draw_key)
            (first, *rest), other = _sides(found), None
            if opponent == "reference" or calibrated:
                other = said_by_reference(found.prompt, reference_key)
            second = rest[0] if rest else other
            assert second is not None
            rows, identical = _labelled(label_key, first, second, teacher)
            metrics = {**metrics, "identical": identical}
            if calibrated and other is not None:
                return Calibrated(rows, other[0]), metrics
            return rows, metrics

        def init(key: Key, policy: Policy) -> PyTree:
            if not capacity:
                return ()
            shapes = jax.eval_shape(lambda key: fresh(policy, key)[0], key)
            rows = jax.tree.map(
                lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), shapes
            )
            return Memory(rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

        def following(
            state: PyTree, policy: Policy, key: Key
        ) -> tuple[PyTree, Batch, Metrics]:
            if not capacity:
                return (), *fresh(policy, key)
            fresh_key, choice_key = jax.random.split(key)
            batch, metrics = fresh(policy, fresh_key)
            state = _written(state, batch, batch_size, capacity)
            chosen = jax.random.randint(choice_key, (batch_size,), 0, state.size)
            return state, jax.tree.map(lambda x: x[chosen], state.rows), metrics

        return DataSource(init=init, next=following, arrays=arrays, over=over)

    params = () if reference is None else reference.reference
    return over(jax.tree.map(jnp.asarray, (prompts, params)))


def _check(
    reference: LanguageModel | None,
    opponent: str,
    calibrated: bool,
    batch_size: int,
    capacity: int,
) -> None:
    if opponent not in OPPONENTS:
        raise ValueError(f"opponent must be one of {OPPONENTS}, got {opponent!r}")
    if capacity < 0 or (batch_size > 0 and capacity % batch_size):
        raise ValueError(
            f"capacity={capacity} must be 0 or a multiple of batch_size={batch_size}"
        )
    speaks = (
        reference is not None
        and reference.sampler is not None
        and reference.reference is not None
    )
    if (calibrated or opponent == "reference") and not speaks:
        raise ValueError(
            'calibrated=True and opponent="reference" need a `reference` with a '
            "sampler and parameters"
        )


def _sides(found: Responses) -> list[tuple[Sequences, Array]]:
    """The K answers to each prompt apart: rows `[B, ...]` and scores `[B]`."""
    return [
        (jax.tree.map(lambda x, k=k: x[:, k], found.sequences), found.score[:, k])
        for k in range(found.score.shape[1])
    ]


def _labelled(
    key: Key,
    first: tuple[Sequences, Array],
    second: tuple[Sequences, Array],
    teacher: preference.Teacher,
) -> tuple[Preferences, Array]:
    """The pairs in the order of the teacher's preference; the share of identical."""
    (one, one_score), (two, two_score) = first, second
    answer = preference.ask(key, one_score[None], two_score[None], teacher)
    in_order = answer.preference > 0.5

    def ordered(a: Array, b: Array) -> tuple[Array, Array]:
        flag = in_order[:, None]
        return jnp.where(flag, a, b), jnp.where(flag, b, a)

    sides = jax.tree.map(ordered, one, two)
    chosen, rejected = (
        jax.tree.map(lambda _, pair, k=k: pair[k], one, sides) for k in range(2)
    )
    words = [jnp.where(x.response, x.tokens, -1) for x in (one, two)]
    same = jnp.all(words[0] == words[1], axis=-1)
    decided = answer.weight * (answer.preference != 0.5)
    weight = jnp.where(same, 0.0, decided).astype(jnp.float32)
    return Preferences(chosen, rejected, weight), jnp.mean(same, dtype=jnp.float32)


def _written(memory: Memory, batch: Batch, count: int, capacity: int) -> Memory:
    rows = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(
            old, new, memory.cursor, axis=0
        ),
        memory.rows,
        batch,
    )
    return Memory(
        rows,
        (memory.cursor + count) % capacity,
        jnp.minimum(memory.size + count, capacity),
    )
