"""UNICORN: ask or recommend, and what, as one choice over a graph.

Deng et al. 2021, https://arxiv.org/abs/2105.09710: a dueling double DQN with
prioritised replay, whose actions are the candidate items and attributes of the moment,
and whose state is the weighted graph around the conversation. Default is the paper;
what the authors' released code (https://github.com/dengyang17/unicorn) does otherwise
is a field each, and `AS_CODED` is all of them.

Nothing here knows an environment. Observations are `GraphState`s, which `graph_state`
makes of what is known about a conversation; edges and pre-trained vectors come as
`Knowledge`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from rlx.methods import _q_learning
from rlx.networks import gnn
from rlx.types import Array, EnvSpec, Key, Method, Network, Params, PyTree, Transition

SOURCE = "prioritised"
loss = _q_learning.loss


@dataclasses.dataclass(frozen=True)
class Config(_q_learning.QLearningConfig):
    """Fields of UNICORN."""

    learning_rate: float = 1e-4
    """Adam's step size (section 5.3)."""
    gamma: float = 0.999
    """Discount factor (section 5.3)."""
    tau: float = 0.01
    """How fast the target follows (the released code)."""
    huber_threshold: float = float("inf")
    """Squared errors."""
    epsilon_start: float = 0.9
    """ε at first (the released code's setting)."""
    epsilon_end: float = 0.1
    """ε in the end (likewise)."""
    weight_decay: float = 1e-6
    """L2 penalty, added to the gradient (section 5.3)."""
    clip: float = 1.0
    """Every element of the gradient is clipped at this (the released code)."""
    hidden_size: int = 100
    """H: of the convolutions, the state and the heads (section 5.3)."""
    num_convolutions: int = 2
    """Layers of graph convolution (section 5.3)."""
    num_heads: int = 4
    """Heads of the attention."""
    feedforward: int = 400
    """Units inside the transformer's layer."""
    convolve: bool = True
    """False: no edges, the ablation without a graph."""
    learn_vectors: bool = True
    """The vectors of users, items and attributes are learned further."""
    pretrained: bool = True
    """Begin with the vectors of `Knowledge`; the released code discards them."""
    plain_convolution: bool = False
    """A sum over neighbours without normalisation, own term or ReLU, as released."""
    across_batch: bool = False
    """Attention along the batch, not along the conversation, as released."""
    centred: bool = True
    """Subtract the mean advantage when learning; the released code does not."""
    target_encoder: bool = True
    """The target has an encoder of its own; as released it uses the online one."""
    weigh_elements: bool = True
    """Importance weights multiply errors; as released, their mean only."""
    clip_encoder: bool = True
    """Clip the gradient of the convolutions too; the released code does not."""


AS_CODED: dict[str, Any] = {
    "epsilon_start": 0.1,
    "epsilon_end": 0.1,
    "num_convolutions": 1,
    "pretrained": False,
    "plain_convolution": True,
    "across_batch": True,
    "centred": False,
    "target_encoder": False,
    "weigh_elements": False,
    "clip_encoder": False,
}
"""Fields with which the method does what the released code does."""


class Knowledge(NamedTuple):
    """What is known before any conversation."""

    user_vectors: Array
    """`[U, D]`, from training interactions alone."""
    item_vectors: Array
    """`[I, D]`"""
    attribute_vectors: Array
    """`[P, D]`"""
    has: Callable[[Array, Array], Array]
    """`(items int[..., M], attributes int[..., N]) -> bool[..., M, N]`."""


@struct.dataclass
class GraphState:
    """A conversation as the method sees it: the nodes of its graph, and the actions.

    Edges follow from the nodes and are not kept. Ids of what is not there are -1.
    """

    user: Array
    """`int32[...]`"""
    accepted: Array
    """`int32[..., T]` attributes, in the order of acceptance."""
    items: Array
    """`int32[..., M]` the candidates with the greatest weights."""
    weights: Array
    """`[..., M]` in (0, 1): how well each suits; the edges to the user."""
    rest: Array
    """`[..., 1 + T + L]` all other candidates, merged into one node: the sums of their
    edges to the user, the accepted attributes and `attribute_actions`."""
    item_actions: Array
    """`int32[..., K]` items that can be recommended, best first."""
    attribute_actions: Array
    """`int32[..., L]` attributes that can be asked for."""


@struct.dataclass
class Choice:
    """What the method does: ask for an attribute, or recommend a list."""

    attribute: Array
    """`int32[...]`; -1: recommend."""
    items: Array
    """`int32[..., K]` the list, best first by Q; -1 in places that stay empty."""
    index: Array
    """`int32[...]` which of the K + L actions this was."""


def graph_state(  # noqa: PLR0913 (what is known about a conversation)
    user: Array,
    accepted: Array,
    candidate: Array,
    scores: Array,
    attribute_actions: Array,
    *,
    counts: Callable[[Array], Array],
    num_items: int,
    num_actions: int,
) -> GraphState:
    """What is known about a conversation, as an observation. No batch axes: `vmap`.

    The paper's graph has all candidates as nodes. Here those beyond the best M are one
    node, whose edges are the sums of theirs: degrees stay those of the whole graph.

    Args:
      user: `int32[]`.
      accepted: `int32[T]` attributes in their order, -1 behind the last.
      candidate: `bool[I]` items that are still possible.
      scores: `[I]` how well every item suits, before the logistic function.
      attribute_actions: `int32[L]`, -1 where there are fewer.
      counts: `float[I] -> [P]`: sums over the items that have each attribute.
      num_items: M, items kept as nodes: those with the greatest scores.
      num_actions: K, items that can be recommended.

    Raises:
      AssertionError: shapes do not match, or K > M.
    """
    chex.assert_equal_shape([candidate, scores])
    if num_actions > num_items:
        raise ValueError(f"{num_actions} actions of {num_items} items")
    masked = jnp.where(candidate, scores, -jnp.inf)
    best, items = jax.lax.top_k(masked, num_items)
    there = best > -jnp.inf
    items = jnp.where(there, items, -1).astype(jnp.int32)
    weights = jnp.where(there, _suits(best), 0.0)
    others = candidate.at[jnp.where(there, items, candidate.size)].set(
        False, mode="drop"
    )
    attributes = jnp.concatenate([accepted, attribute_actions])
    edges = counts(others.astype(jnp.float32))[jnp.maximum(attributes, 0)]
    to_user = jnp.sum(jnp.where(others, _suits(scores), 0.0))
    return GraphState(
        user=user.astype(jnp.int32),
        accepted=accepted.astype(jnp.int32),
        items=items,
        weights=weights,
        rest=jnp.append(to_user, jnp.where(attributes >= 0, edges, 0.0)),
        item_actions=items[:num_actions],
        attribute_actions=attribute_actions.astype(jnp.int32),
    )


def _suits(scores: Array) -> Array:
    return jax.nn.sigmoid(jnp.clip(scores, -30, 30))


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    *,
    knowledge: Knowledge,
) -> Method:
    """UNICORN for an environment whose observations are `GraphState`s.

    Its actions are `Choice`s.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      knowledge: edges and pre-trained vectors.

    Raises:
      ValueError: a field of the config has an impossible value.
    """
    del spec
    _check(config)
    network = _network(config, knowledge)
    agent = _q_learning.Agent(
        network=network,
        where=lambda observation, everything: _allowed(observation),
        to_env=_choice,
        taken=lambda batch: batch.action.index,
    )
    acting = agent
    if config.across_batch:  # the released code acts in one conversation at a time
        acting = agent._replace(network=Network(network.init, _one_by_one(network)))
    method = _q_learning.make_method(
        agent,
        config,
        _optimizer(config),
        loss_fn=_loss(agent, config),
        act=_q_learning.make_act(acting, config),
    )
    if config.target_encoder:
        return method
    follow = method.target_update

    def update(params: Params, target_params: Params, step: Array) -> Params:
        heads = follow(params["heads"], target_params["heads"], step)
        return {**params, "heads": heads}

    return method._replace(target_update=update)


def _network(config: Config, knowledge: Knowledge) -> Network:
    """`apply(params, GraphState [...]) -> Q(s, ·) [..., K + L]`."""
    names = [field.name for field in dataclasses.fields(gnn.GraphArchitecture)]
    architecture = gnn.GraphArchitecture(**{n: getattr(config, n) for n in names})
    encoder, heads = gnn.GraphEncoder(architecture), gnn.ActionHeads(architecture)
    tables = {
        "users": knowledge.user_vectors,
        "items": knowledge.item_vectors,
        "attributes": knowledge.attribute_vectors,
    }
    size = knowledge.item_vectors.shape[1]

    def init(key: Key) -> Params:
        encoder_key, heads_key, *keys = jax.random.split(key, 2 + len(tables))
        # One item, and a user with one accepted attribute.
        parts = {
            "rest": jnp.zeros((size,)),
            "encoder": encoder.init(
                encoder_key,
                jnp.zeros((1, 1, size)),
                jnp.zeros((1, 2, size)),
                jnp.ones((1, 1, 2)),
                jnp.ones((1, 1), bool),
            )["params"],
            "heads": heads.init(
                heads_key,
                jnp.zeros((1, config.hidden_size)),
                jnp.zeros((1, 1, size)),
                jnp.ones((1, 1), bool),
            )["params"],
        }
        if not config.learn_vectors:
            return parts
        drawn = {
            name: table + 0.0
            if config.pretrained
            else jax.random.normal(k, table.shape)
            for k, (name, table) in zip(keys, tables.items(), strict=True)
        }
        return {**parts, "vectors": drawn}

    def apply(params: Params, observation: GraphState) -> Array:
        batch, joined = observation.user.shape, _flat(observation)
        vectors = params.get("vectors", tables)
        nodes = _nodes(vectors, params["rest"], joined, knowledge.has)
        state = encoder.apply({"params": params["encoder"]}, *nodes)
        actions = jnp.concatenate(
            [
                _rows(vectors["items"], joined.item_actions),
                _rows(vectors["attributes"], joined.attribute_actions),
            ],
            axis=-2,
        )
        found: Any = heads.apply(
            {"params": params["heads"]}, state, actions, _allowed(joined)
        )
        return found.reshape(*batch, -1)

    return Network(init, apply)


def _one_by_one(network: Network) -> Callable[[Params, GraphState], Array]:
    """`apply`, in which no conversation knows of the others."""

    def apply(params: Params, observation: GraphState) -> Array:
        alone = jax.vmap(lambda one: network.apply(params, one))(_flat(observation))
        return alone.reshape(*observation.user.shape, -1)

    return apply


def _nodes(
    vectors: Params,
    rest: Array,
    observation: GraphState,
    has: Callable[[Array, Array], Array],
) -> tuple[Array, Array, Array, Array]:
    """Vectors of both sides, the edges between them, which attributes are accepted."""
    attributes = jnp.concatenate(
        [observation.accepted, observation.attribute_actions], axis=-1
    )
    items = observation.items
    there = (items >= 0)[..., :, None] & (attributes >= 0)[..., None, :]
    belongs = has(jnp.maximum(items, 0), jnp.maximum(attributes, 0)) & there
    edges = jnp.concatenate(
        [observation.weights[..., None], belongs.astype(jnp.float32)], axis=-1
    )
    others = jnp.concatenate(
        [
            vectors["users"][observation.user][..., None, :],
            _rows(vectors["attributes"], attributes),
        ],
        axis=-2,
    )
    edges = jnp.concatenate([edges, observation.rest[..., None, :]], axis=-2)
    last = jnp.broadcast_to(rest, (*items.shape[:-1], 1, rest.size))
    nodes = jnp.concatenate([_rows(vectors["items"], items), last], axis=-2)
    return nodes, others, edges, observation.accepted >= 0


def _rows(table: Array, ids: Array) -> Array:
    """Vectors by id; zeros for -1."""
    found = table[jnp.maximum(ids, 0)]
    return jnp.where((ids >= 0)[..., None], found, 0.0)


def _flat(observation: GraphState) -> GraphState:
    """All leading axes as one."""
    number = observation.user.ndim
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[number:]), observation)


def _allowed(observation: GraphState) -> Array:
    ids = [observation.item_actions, observation.attribute_actions]
    return jnp.concatenate(ids, axis=-1) >= 0


def _choice(observation: GraphState, everything: Array, index: Array) -> Choice:
    """The chosen action; a list holds the candidates by Q."""
    items = observation.item_actions
    num_items = items.shape[-1]
    values = jnp.where(items >= 0, everything[..., :num_items], -jnp.inf)
    ranked = jnp.argsort(-values, axis=-1, stable=True)
    asked = index >= num_items
    place = jnp.where(asked, index - num_items, 0)
    attributes = observation.attribute_actions
    attribute = jnp.take_along_axis(attributes, place[..., None], axis=-1)[..., 0]
    return Choice(
        attribute=jnp.where(asked, attribute, -1),
        items=jnp.take_along_axis(items, ranked, axis=-1),
        index=index,
    )


def _loss(agent: _q_learning.Agent, config: Config) -> Callable[..., Any]:
    """The shared loss; as released, weights only rescale the mean."""
    plain = _q_learning.make_loss(agent, config)
    if config.weigh_elements:
        return plain

    def loss_fn(
        params: Params,
        target_params: Params,
        stats: PyTree,
        batch: Transition,
        key: Key,
    ):
        weights = batch.extras.get(_q_learning.IMPORTANCE, jnp.ones_like(batch.reward))
        value, metrics = plain(
            params, target_params, stats, batch.replace(extras={}), key
        )
        return jnp.mean(weights) * value, metrics

    return loss_fn


def _optimizer(config: Config) -> optax.GradientTransformation:
    def clipped(params: Params) -> Params:
        return {name: config.clip_encoder or name != "encoder" for name in params}

    return optax.chain(
        optax.masked(optax.clip(config.clip), clipped),
        optax.add_decayed_weights(config.weight_decay),
        optax.adam(config.learning_rate),
    )


def _check(config: Config) -> None:
    """Raises ValueError for fields that no run could use."""
    _q_learning.check(config)
    for name in ("hidden_size", "num_convolutions", "num_heads", "feedforward"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.hidden_size % config.num_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is no multiple of "
            f"num_heads={config.num_heads}"
        )
