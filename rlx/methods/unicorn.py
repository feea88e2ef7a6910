"""UNICORN: ask or recommend, and what, as one choice over a graph.

Deng et al. 2021, https://arxiv.org/abs/2105.09710: a dueling double DQN with
prioritised replay, whose actions are the candidate items and attributes of the moment,
and whose state is the weighted graph around the conversation. Default is the paper;
what the authors' released code (https://github.com/dengyang17/unicorn) does otherwise
is a field each, and `AS_CODED` is all of them.

Nothing here knows an environment. Observations are `GraphState`s, which `graph` makes
of what an `rlx.ops.conversation.Observation` knows, and `graph_state` of its parts;
edges and pre-trained vectors come as `Knowledge`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlx.methods import _conversation, _conversation_graph, _q_learning
from rlx.networks import gnn
from rlx.ops.conversation import ConversationSpec
from rlx.types import Array, EnvSpec, Key, Method, Network, Params, PyTree, Transition

SOURCE = "prioritised"
loss = _q_learning.loss
Knowledge = _conversation.Knowledge
GraphState = _conversation.GraphState
Choice = _conversation.Choice
graph_state = _conversation.graph_state
graph = _conversation_graph.graph
knowledge_of = _conversation_graph.knowledge_of
require_binary = _conversation_graph.require_binary


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
    batch_size: int = 128
    """Transitions in a minibatch, the replay source's `batch_size` (section 5.3)."""
    capacity: int = 49_920
    """Transitions remembered, the replay source's `capacity`: 780 for each of 64
    conversations (the released code: 50,000)."""
    warmup: int = 0
    """The replay source's `warmup`: at first ε is great enough."""
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
    state_features: bool = False
    """The heads see `GraphState.features` beside the state; the paper's do not."""
    action_features: bool = False
    """Actions are vectors and `GraphState.action_features`; the paper's are vectors."""
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


def make(
    spec: EnvSpec,
    config: Config = Config(),  # noqa: B008 (frozen)
    *,
    knowledge: Knowledge | None = None,
) -> Method:
    """UNICORN for an environment whose observations are `GraphState`s.

    Its actions are `Choice`s.

    Args:
      spec: the environment's.
      config: see the fields of `Config`.
      knowledge: edges and pre-trained vectors; the catalogue's of a
        `ConversationSpec` unless given.

    Raises:
      ValueError: a field of the config has an impossible value, or nothing is known of
        what the environment is about.
    """
    if knowledge is None:
        if not isinstance(spec, ConversationSpec):
            raise ValueError(
                f"{spec.name} is no conversation about a catalogue: UNICORN learns on "
                "conversation/synthetic_graph or conversation/file_graph, or pass "
                "knowledge=..."
            )
        knowledge = knowledge_of(spec)
    _check(config, knowledge)
    network = _network(config, knowledge)
    agent = _q_learning.Agent(
        network=network,
        where=lambda observation, everything: _conversation.allowed(observation),
        to_env=_conversation.choose,
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
    more = knowledge.num_features if config.state_features else 0
    wider = knowledge.num_action_features if config.action_features else 0

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
                jnp.zeros((1, config.hidden_size + more)),
                jnp.zeros((1, 1, size + wider)),
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
        if not isinstance(observation, GraphState):
            raise ValueError(
                "UNICORN sees graphs: use the environment whose name ends in _graph, "
                "or rlx.methods.unicorn.graph"
            )
        batch, joined = observation.user.shape, _conversation.flat(observation)
        vectors = params.get("vectors", tables)
        nodes = _nodes(vectors, params["rest"], joined, knowledge.has)
        state: Any = encoder.apply({"params": params["encoder"]}, *nodes)
        actions = jnp.concatenate(
            [
                _rows(vectors["items"], joined.item_actions),
                _rows(vectors["attributes"], joined.attribute_actions),
            ],
            axis=-2,
        )
        if config.state_features:
            state = jnp.concatenate([state, joined.features], axis=-1)
        if config.action_features:
            actions = jnp.concatenate([actions, joined.action_features], axis=-1)
        found: Any = heads.apply(
            {"params": params["heads"]}, state, actions, _conversation.allowed(joined)
        )
        return found.reshape(*batch, -1)

    return Network(init, apply)


def _one_by_one(network: Network) -> Callable[[Params, GraphState], Array]:
    """`apply`, in which no conversation knows of the others."""

    def apply(params: Params, observation: GraphState) -> Array:
        alone = jax.vmap(lambda one: network.apply(params, one))(
            _conversation.flat(observation)
        )
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


def _check(config: Config, knowledge: Knowledge) -> None:
    """Raises ValueError for fields that no run could use."""
    _q_learning.check(config)
    for name, number in (
        ("state_features", knowledge.num_features),
        ("action_features", knowledge.num_action_features),
    ):
        if getattr(config, name) and not number:
            raise ValueError(f"{name}: the environment's graphs have none")
    for name in ("hidden_size", "num_convolutions", "num_heads", "feedforward"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.hidden_size % config.num_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is no multiple of "
            f"num_heads={config.num_heads}"
        )
