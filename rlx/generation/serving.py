"""Continuous batching: a prompt is answered as soon as a slot and its pages are free.

Yu et al. 2022 (Orca), https://www.usenix.org/conference/osdi22/presentation/yu, with
the pages of Kwon et al. 2023, https://arxiv.org/abs/2309.06180. In lockstep
(`rlx.generation.speakers.sampler`) a batch waits for its longest answer; here whoever
has ended makes room for the next prompt, all within one compiled loop. Pages for the
whole answer are set aside when a prompt comes in, so that none is thrown out again.

Every answer draws with a key of its own: what is said does not depend on the number of
slots, on the pool, or on who else is being served.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from rlx.generation import engine, page_table, paged_cache, speakers
from rlx.generation.page_table import NOWHERE
from rlx.generation.paged_cache import Cache
from rlx.generation.sampling import Generated, Sampler, Sampling, draw
from rlx.generation.sparse import Plan, Sparse, plan
from rlx.networks import transformer
from rlx.types import Array, Key, Params


@struct.dataclass
class Serving:
    """A server at work: G slots, each with the K answers to one prompt."""

    cache: Cache
    """Of G K rows."""
    request: Array
    """`int32[G]` prompt in each slot; N: none."""
    alive: Array
    """`bool[G, K]` answers that go on."""
    token: Array
    """`int32[G, K]` said last."""
    count: Array
    """`int32[G, K]` tokens said."""
    following: Array
    """`int32[]` the prompt that comes next."""
    found: Generated
    """`[N, K, T]`."""
    steps: Array
    """`int32[]` steps in which tokens were said, prompts apart."""


def sampler(
    config: transformer.Config,
    options: Sampling,
    sparse: Sparse,
    *,
    slots: int,
    pool: int | None = None,
) -> Sampler:
    """A sampler that serves its prompts in a few slots.

    Args:
      config: of the decoder.
      options: how responses are drawn.
      sparse: what is read.
      slots: prompts that are answered at a time.
      pool: pages of the cache; None: enough for all slots at their longest. With fewer,
        prompts wait for pages.

    Raises:
      ValueError: no slot, a head map of another model; when called: a prompt has no
        positions in the network, or could never have its pages.
      AssertionError (when called): prompts are no matrix, or the mask has another
        shape.
    """
    run = server(config, options, sparse, slots=slots, pool=pool)

    def generate(
        params: Params, prompt: Array, mask: Array, key: Key | None, samples: int = 1
    ) -> Generated:
        found = run(params, prompt, mask, key, samples).found
        return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), found)

    return generate


def server(
    config: transformer.Config,
    options: Sampling,
    sparse: Sparse,
    *,
    slots: int,
    pool: int | None = None,
) -> Callable[..., Serving]:
    """`(params, prompt, mask, key, samples=1) -> Serving` when all is said."""
    if slots < 1:
        raise ValueError(f"slots must be positive, got {slots}")
    made = plan(config, sparse)

    def run(
        params: Params, prompt: Array, mask: Array, key: Key | None, samples: int = 1
    ) -> Serving:
        chex.assert_rank(prompt, 2)
        chex.assert_equal_shape([prompt, mask])
        room = speakers.check_room(config, prompt.shape[1], options.max_tokens)
        size = _pool(made, prompt.shape[1], options, samples, slots, pool)
        tokens, length = engine.right_padded(prompt, mask)
        job = _Job(made, options, engine.unstacked(params), tokens, length, key)

        def going(state: Serving) -> Array:
            return jnp.any(state.alive) | (state.following < len(tokens))

        def body(state: Serving) -> Serving:
            admit, free = _can_admit(job, state)
            return jax.lax.cond(admit, _admit, _say, job, state, free)

        begin = _empty(made, options, len(tokens), slots, samples, room, size)
        return jax.lax.while_loop(going, body, begin)

    return run


@struct.dataclass
class _Job:
    """What does not change while it is served."""

    made: Plan = struct.field(pytree_node=False)
    options: Sampling = struct.field(pytree_node=False)
    params: Params
    tokens: Array
    length: Array
    key: Key | None


def _pool(
    made: Plan,
    length: int,
    options: Sampling,
    samples: int,
    slots: int,
    pool: int | None,
) -> int:
    """Pages of the pool; raises ValueError if a prompt could never have its own."""
    # A prompt that ends just before a page shares one page less than a longer one.
    shortest = max(length - made.sparse.page_size, 0)
    most = max(
        whole + samples * own
        for whole, own in (
            page_table.shares(made, size, options.max_tokens, samples)
            for size in range(shortest, length + 1)
        )
    )
    if pool is not None and pool < most:
        raise ValueError(
            f"a prompt of {length} tokens with {samples} answers of "
            f"{options.max_tokens} may need {most} pages of {made.sparse.page_size}, "
            f"but the pool has {pool}: give it more, or fewer samples"
        )
    return slots * most if pool is None else pool


def _empty(
    made: Plan,
    options: Sampling,
    prompts: int,
    slots: int,
    samples: int,
    room: int,
    pool: int,
) -> Serving:
    shape = (prompts, samples, options.max_tokens)
    return Serving(
        cache=paged_cache.init(made, slots * samples, room, pool),
        request=jnp.full((slots,), prompts, jnp.int32),
        alive=jnp.zeros((slots, samples), bool),
        token=jnp.zeros((slots, samples), jnp.int32),
        count=jnp.zeros((slots, samples), jnp.int32),
        following=jnp.int32(0),
        found=Generated(
            jnp.full(shape, options.pad_token, jnp.int32),
            jnp.zeros(shape, bool),
            jnp.zeros(shape, jnp.float32),
        ),
        steps=jnp.int32(0),
    )


def _can_admit(job: _Job, state: Serving) -> tuple[Array, Array]:
    """Whether the next prompt may come in, and the free pages, `int32[N]` first."""
    unused = state.cache.references == 0
    (free,) = jnp.nonzero(unused, size=unused.shape[0], fill_value=NOWHERE)
    last = job.length.shape[0] - 1
    length = job.length[jnp.minimum(state.following, last)]
    samples = state.alive.shape[1]
    whole, own = page_table.shares(job.made, length, job.options.max_tokens, samples)
    enough = whole + samples * own <= jnp.sum(unused)
    waiting = state.following <= last
    return waiting & enough & jnp.any(_idle(state)), free.astype(jnp.int32)


def _idle(state: Serving) -> Array:
    """`bool[G]` slots without a prompt."""
    return state.request == state.found.tokens.shape[0]


def _admit(job: _Job, state: Serving, free: Array) -> Serving:
    """The next prompt is read into the first idle slot, its first tokens are said."""
    samples = state.alive.shape[1]
    slot = jnp.argmax(_idle(state)).astype(jnp.int32)
    tokens, length = (
        jax.lax.dynamic_index_in_dim(x, state.following, keepdims=True)
        for x in (job.tokens, job.length)
    )
    table = page_table.allot(
        job.made,
        free,
        length[0],
        job.options.max_tokens,
        samples,
        state.cache.table.shape[1],
    )
    logits, cache = engine.read_prompts(
        job.made, job.params, state.cache, tokens, length, table[None], slot * samples
    )
    here = jnp.arange(state.request.shape[0]) == slot
    state = dataclasses.replace(
        state,
        cache=cache,
        request=jnp.where(here, state.following, state.request),
        alive=state.alive | here[:, None],
        count=jnp.where(here[:, None], 0, state.count),
        following=state.following + 1,
    )
    spread = jnp.broadcast_to(logits[:, None], (*state.alive.shape, logits.shape[-1]))
    return _said(job, state, spread, state.alive & here[:, None])


def _say(job: _Job, state: Serving, free: Array) -> Serving:
    """All answers that go on get a token longer."""
    del free
    logits, cache = engine.step(
        job.made,
        job.params,
        state.cache,
        state.token.reshape(-1),
        state.alive.reshape(-1),
    )
    state = dataclasses.replace(state, cache=cache, steps=state.steps + 1)
    return _said(job, state, logits.reshape(*state.alive.shape, -1), state.alive)


def _said(job: _Job, state: Serving, logits: Array, where: Array) -> Serving:
    """Tokens from logits `[G, K, V]` in the answers of `where`, `bool[G, K]`."""
    options, samples = job.options, state.alive.shape[1]
    answer = state.request[:, None] * samples + jnp.arange(samples)[None]

    def one(logits: Array, answer: Array, count: Array) -> tuple[Array, Array]:
        key = job.key
        if key is not None:
            key = jax.random.fold_in(jax.random.fold_in(key, answer), count)
        token, log_prob = draw(logits[None], options, key)
        return token[0], log_prob[0]

    token, log_prob = jax.vmap(jax.vmap(one))(logits, answer, state.count)
    rows = jnp.where(where, state.request[:, None], NOWHERE)
    place = rows, jnp.arange(samples)[None], state.count
    found = state.found
    found = Generated(
        found.tokens.at[place].set(token, mode="drop"),
        found.mask.at[place].set(True, mode="drop"),
        found.log_prob.at[place].set(log_prob, mode="drop"),
    )
    stops = jnp.array(options.stop_tokens, jnp.int32)
    ended = jnp.any(token[..., None] == stops[None, None], axis=-1)
    count = state.count + where
    ended |= count >= options.max_tokens
    state = dataclasses.replace(
        state,
        alive=state.alive & ~(where & ended),
        token=jnp.where(where, token, state.token),
        count=count,
        found=found,
    )
    ended = ~_idle(state) & ~jnp.any(state.alive, axis=1)
    return jax.lax.cond(jnp.any(ended), _released, lambda state, _: state, state, ended)


def _released(state: Serving, ended: Array) -> Serving:
    """Slots that are ended give their pages back and wait for a prompt."""
    cache, samples = state.cache, state.alive.shape[1]
    rows = jnp.repeat(ended, samples)[:, None]
    pages = jnp.where(rows, cache.table, NOWHERE)
    cache = cache.replace(
        table=jnp.where(rows, NOWHERE, cache.table),
        references=cache.references.at[pages].add(-1, mode="drop"),
    )
    prompts = state.found.tokens.shape[0]
    return dataclasses.replace(
        state, cache=cache, request=jnp.where(ended, prompts, state.request)
    )
