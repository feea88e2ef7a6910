"""The simulator as `rlx.methods.unicorn` sees it: graphs in, asked or told out."""

from __future__ import annotations

import dataclasses
from typing import Any

from envs.conversation import simulator
from envs.conversation.simulator import Options, State
from rlx.methods import unicorn
from rlx.ops import conversation
from rlx.ops.catalogue import Catalogue
from rlx.types import Box, Discrete, Env, Key, Step


def make(
    catalogue: Catalogue,
    options: Options | None = None,
    name: str = "",
    sharpness: float = 0.0,
) -> Env:
    """The simulator with `GraphState` observations and the method's `Choice` actions.

    Args:
      catalogue: what conversations are about.
      options: the rules.
      name: of the environment.
      sharpness: of the numbers in `GraphState.features`, see `unicorn.graph`.

    Raises:
      ValueError: as `simulator.make`; or questions are enumerated.
    """
    unicorn.require_binary(catalogue)
    inner = simulator.make(catalogue, options, name)
    plain_spec: Any = inner.spec
    # A record of spaces has the form of the actions.
    record: Any = unicorn.Choice
    choice = record(
        attribute=Discrete(catalogue.num_attributes),
        items=Box(
            (plain_spec.pruning.num_items,), -1, catalogue.num_items - 1, "int32"
        ),
        index=inner.spec.action,
    )
    spec = dataclasses.replace(plain_spec, action=choice)

    def reset(key: Key) -> tuple[State, unicorn.GraphState]:
        state, seen = inner.reset(key)
        return state, unicorn.graph(spec, seen, sharpness)

    def step(state: State, action: unicorn.Choice, key: Key) -> tuple[State, Step]:
        plain = conversation.Choice(slot=action.index, items=action.items)
        state, new = inner.step(state, plain, key)
        graph = unicorn.graph(spec, new.observation, sharpness)
        return state, new.replace(observation=graph)

    return Env(reset, step, spec)
