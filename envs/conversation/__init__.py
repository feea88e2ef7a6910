"""Conversational recommendation: simulator, catalogues, rules."""

from envs.conversation.catalogue import catalogue
from envs.conversation.simulator import Options, State, make, start, step
from envs.conversation.synthetic import World, synthetic
from rlx.ops.catalogue import Catalogue, Dense, Edges
from rlx.ops.conversation import (
    Choice,
    ConversationSpec,
    Dialogue,
    Observation,
    Pruning,
    compress,
    observe,
)

__all__ = [
    "Catalogue",
    "Choice",
    "ConversationSpec",
    "Dense",
    "Dialogue",
    "Edges",
    "Observation",
    "Options",
    "Pruning",
    "State",
    "World",
    "catalogue",
    "compress",
    "make",
    "observe",
    "start",
    "step",
    "synthetic",
]
