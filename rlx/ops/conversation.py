"""What an agent sees of a conversation about a catalogue, from the little it holds.

A `Dialogue` is all that was said, small enough for a replay buffer of many; `observe`
derives from it everything that a policy reads: scores, entropies, the pruned actions
and the items of the graph. It is a pure function, so a learner rebuilds observations
instead of storing them. Deng et al. 2021 (UNICORN), https://arxiv.org/abs/2105.09710,
sections 3.1 and 3.3.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from rlx.ops import catalogue as links_lib
from rlx.ops import recommendation
from rlx.ops.catalogue import Catalogue
from rlx.types import Array, EnvSpec


@dataclasses.dataclass(frozen=True)
class Pruning:
    """How many actions and graph nodes an observation keeps."""

    num_items: int = 10
    """K_v item actions: the best candidates by preference (UNICORN, section 3.3)."""
    num_questions: int = 10
    """K_p question actions; the number of all questions keeps every one."""
    list_size: int = 10
    """k, items in a recommendation."""
    num_nodes: int = 64
    """Items of the graph: the best candidates. The paper has all of them."""
    questions_by: str = "entropy"
    """`"entropy"` (the paper) or `"preference"`: e_u·e_p + Σ_{p'∈A} e_p'·e_p, which the
    authors' code uses where questions are binary."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
          ValueError: one is impossible.
        """
        for name in ("num_items", "num_questions", "list_size", "num_nodes"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if self.num_nodes < max(self.num_items, self.list_size):
            raise ValueError(
                f"num_nodes={self.num_nodes} must be at least "
                f"{max(self.num_items, self.list_size)}: item actions and "
                "recommendations are taken from the items of the graph"
            )
        if self.questions_by not in ("entropy", "preference"):
            raise ValueError(
                "questions_by must be 'entropy' or 'preference', got "
                f"{self.questions_by!r}"
            )

    def fitted(self, catalogue: Catalogue) -> Pruning:
        """This, with no more nodes and questions than the catalogue has.

        Raises:
          ValueError: the catalogue has too few items for a recommendation.
        """
        least = max(self.num_items, self.list_size)
        if catalogue.num_items < least:
            raise ValueError(
                f"the catalogue has {catalogue.num_items} items, fewer than the "
                f"{least} of a recommendation: lower list_size and num_items"
            )
        return dataclasses.replace(
            self,
            num_nodes=min(self.num_nodes, catalogue.num_items),
            num_questions=min(self.num_questions, catalogue.num_questions),
        )


@struct.dataclass
class Dialogue:
    """A conversation so far; no batch axis."""

    user: Array
    """`int32[]`."""
    accepted_order: Array
    """`int32[L]` accepted attributes in the order of acceptance, −1 pads."""
    rejected_order: Array
    """`int32[X]` rejected attributes likewise."""
    candidate_bits: Array
    """`uint8[⌈NI/8⌉]` the candidates C, eight to a byte."""
    turn: Array
    """`int32[]` actions that the agent has taken."""


@struct.dataclass
class Observation:
    """What a policy sees; no batch axis. Items have ids 0 … NI − 1 everywhere."""

    user: Array
    """`int32[]`."""
    accepted: Array
    """bool `[NA]` A."""
    rejected: Array
    """bool `[NA]` R."""
    accepted_order: Array
    """`int32[L]` A in the order of acceptance, −1 pads."""
    rejected_order: Array
    """`int32[X]` R likewise."""
    candidate: Array
    """bool `[NI]` C."""
    num_candidates: Array
    """`int32[]` |C|."""
    turn: Array
    """`int32[]` actions that the agent has taken."""
    action_ids: Array
    """`int32[K_v + K_p]`: K_v items by falling score, then K_p questions by falling
    entropy (or preference); a question has id NI + its number. A position in here, a
    "slot", is what the agent chooses."""
    action_mask: Array
    """bool `[K_v + K_p]` which slots may be chosen; what the id of another is means
    nothing."""
    item_ids: Array
    """`int32[N]` the N best candidates by falling score; the first K_v are actions."""
    item_mask: Array
    """bool `[N]` False where there are fewer candidates."""
    item_score: Array
    """`float32[N]` their preference scores; 0 where masked."""
    item_weight: Array
    """`float32[N]` w_v = σ(score), weights of the edges user–item; 0 where masked."""
    entropy: Array
    """`float32[NQ]` weighted entropy of every question, in bits; 0 where it cannot be
    asked. Enumerated questions have the sum of their attributes'."""
    askable: Array
    """bool `[NQ]` questions about an attribute of some candidate, neither accepted nor
    rejected."""


@struct.dataclass
class Choice:
    """An action with its own list of items, ranked by the agent; no batch axis."""

    slot: Array
    """`int32[]` position in `Observation.action_ids`."""
    items: Array
    """`int32[k]` items to recommend, best first, −1 pads; read only where the slot is
    an item's. Ids that are no candidates, or come twice, count for nothing."""


@dataclasses.dataclass(frozen=True, eq=False)
class ConversationSpec(EnvSpec):
    """`EnvSpec` with the catalogue, which methods read; equal to itself alone."""

    catalogue: Catalogue = None  # type: ignore[assignment]
    """What conversations are about."""
    pruning: Pruning = dataclasses.field(default_factory=Pruning)
    """How many actions and nodes an observation has; fits the catalogue."""


def compress(observation: Observation) -> Dialogue:
    """What `observe` needs to rebuild an observation."""
    return Dialogue(
        user=observation.user,
        accepted_order=observation.accepted_order,
        rejected_order=observation.rejected_order,
        candidate_bits=jnp.packbits(observation.candidate),
        turn=observation.turn,
    )


def observe(catalogue: Catalogue, dialogue: Dialogue, pruning: Pruning) -> Observation:
    """Derives everything a policy reads from what was said; no batch axis.

    Args:
      catalogue: what the conversation is about.
      dialogue: the conversation so far.
      pruning: what to keep.

    Returns:
      The observation; `compress` undoes it.

    Raises:
      ValueError: more items or questions are to be kept than there are.
    """
    count = catalogue.num_items
    candidate = jnp.unpackbits(dialogue.candidate_bits, count=count).astype(bool)
    return derive(catalogue, dialogue, candidate, pruning)


def derive(
    catalogue: Catalogue, dialogue: Dialogue, candidate: Array, pruning: Pruning
) -> Observation:
    """`observe` with C at hand, bool `[NI]`; `candidate_bits` is unread."""
    accepted, rejected = (
        links_lib.members(ids, catalogue.num_attributes)
        for ids in (dialogue.accepted_order, dialogue.rejected_order)
    )
    score = scores(catalogue, dialogue)
    item_ids, item_mask = recommendation.top(score, candidate, pruning.num_nodes)
    item_score = jnp.where(item_mask, score[item_ids], 0.0)
    count = jnp.sum(candidate, dtype=jnp.int32)
    entropy, askable = questions(
        catalogue, jax.nn.sigmoid(score), candidate, accepted | rejected
    )
    order = entropy
    if pruning.questions_by == "preference":
        order = links_lib.question_embedding(catalogue) @ query(catalogue, dialogue)
    asked, asked_mask = recommendation.top(order, askable, pruning.num_questions)
    chosen = slice(pruning.num_items)
    return Observation(
        user=dialogue.user,
        accepted=accepted,
        rejected=rejected,
        accepted_order=dialogue.accepted_order,
        rejected_order=dialogue.rejected_order,
        candidate=candidate,
        num_candidates=count,
        turn=dialogue.turn,
        action_ids=jnp.concatenate([item_ids[chosen], catalogue.num_items + asked]),
        action_mask=jnp.concatenate([item_mask[chosen], asked_mask]),
        item_ids=item_ids,
        item_mask=item_mask,
        item_score=item_score,
        item_weight=jnp.where(item_mask, jax.nn.sigmoid(item_score), 0.0),
        entropy=entropy,
        askable=askable,
    )


def query(catalogue: Catalogue, dialogue: Dialogue | Observation) -> Array:
    """`float32[D]` q = e_u + Σ_{p∈A} e_p."""
    order = dialogue.accepted_order
    vectors = catalogue.attribute_embedding[jnp.maximum(order, 0)]
    said = jnp.sum(jnp.where((order >= 0)[:, None], vectors, 0.0), axis=0)
    return catalogue.user_embedding[dialogue.user] + said


def scores(catalogue: Catalogue, dialogue: Dialogue | Observation) -> Array:
    """`float32[NI]` preference scores of all items, candidates or not."""
    penalty = links_lib.item_penalty(catalogue.links, dialogue.rejected_order)
    return recommendation.item_scores(
        query(catalogue, dialogue), catalogue.item_embedding, penalty
    )


def weights(scores: Array, candidate: Array, sharpness: float = 0.0) -> Array:
    """How likely each item is to be what the user wants, up to a factor.

    σ(score), as UNICORN weighs (equation 5), or exp(sharpness · score), the greatest
    being 1; 0 for items that are no candidates.

    Args:
      scores: `float32[NI]`.
      candidate: bool `[NI]` C.
      sharpness: 0 means σ(score).

    Returns:
      `float32[NI]`.
    """
    found = jax.nn.sigmoid(scores)
    if sharpness:
        best = jnp.max(jnp.where(candidate, scores, -jnp.inf))
        # Of no candidates the best is -inf.
        found = jnp.exp(sharpness * jnp.minimum(scores - best, 0.0))
    return jnp.where(candidate, found, 0.0)


def questions(
    catalogue: Catalogue, weight: Array, candidate: Array, known: Array
) -> tuple[Array, Array]:
    """Weighted entropy of every question, and which can be asked.

    Args:
      catalogue: what the conversation is about.
      weight: `float32[NI]` positive weights of items.
      candidate: bool `[NI]` C.
      known: bool `[NA]` attributes accepted or rejected.

    Returns:
      `float32[NQ]` bits, 0 where unaskable, and bool `[NQ]`.
    """
    inside = candidate.astype(weight.dtype)
    rows = jnp.stack([weight * inside, inside])
    total, number = links_lib.attribute_totals(catalogue.links, rows)
    entropy = recommendation.attribute_entropy(
        total, jnp.sum(rows[0]), number, jnp.sum(rows[1])
    )
    open_ = (number > 0) & ~known
    children = jnp.maximum(catalogue.children, 0)
    open_ = open_[children] & (catalogue.children >= 0)
    entropy = jnp.sum(jnp.where(open_, entropy[children], 0.0), axis=1)
    return entropy, jnp.any(open_, axis=1)
