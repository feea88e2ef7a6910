"""A conversation in the terminal: a trained policy asks and recommends, you answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.ops import catalogue as links_lib
from rlx.ops.catalogue import Catalogue
from rlx.ops.conversation import ConversationSpec
from rlx.types import Env, Policy

Ask = Callable[[str], str]
Tell = Callable[[str], None]


def is_conversation(env: Env) -> bool:
    """Whether a person can take the user's part."""
    return isinstance(env.spec, ConversationSpec)


def talk(
    env: Env, policy: Policy, seed: int, ask: Ask = input, tell: Tell = print
) -> bool:
    """Hold one conversation with the person at the terminal.

    The seed draws a user, an item to look for and the attribute that opens. Answers
    may be true of that item, which the empty answer always is, or of any other.

    Args:
      env: of the policy; its states are `envs.conversation.State`s.
      policy: it asks one attribute or recommends a list.
      seed: of the opening.
      ask: shows a question and returns the answer; EOFError ends the conversation.
      tell: shows a line.

    Returns:
      Whether the item was found.
    """
    spec: Any = env.spec
    state, observation = jax.jit(env.reset)(jax.random.key(seed))
    # Only the person knows; the environment is told answer by answer.
    item, carry = int(state.target), policy.init_carry()
    act = jax.jit(lambda seen, carry: policy.act(seen, carry, None)[:2])
    step = jax.jit(lambda state, action: env.step(state, action, jax.random.key(0)))
    own = attributes_of(spec.catalogue, item)
    tell(
        f"You are user {int(state.user)}. An item to look for: {item}, with the "
        f"attributes {_listed(own)}.\n"
        f"You open with attribute {int(state.accepted_order[0])}."
    )
    for turn in range(1, spec.time_limit + 1):
        action, carry = act(observation, carry)
        heading = f"[{turn}/{spec.time_limit}] {int(jnp.sum(state.candidate))} items. "
        try:
            answer = _answer(spec.catalogue, state, action, item, ask, tell, heading)
        except EOFError:
            tell("\nThe conversation ends here.")
            return False
        state, new = step(state.replace(target=jnp.int32(answer)), action)
        observation = new.observation
        if bool(new.info["hit"]):
            tell(f"Found in turn {turn}: item {answer}.")
            return True
    tell(f"Not found in {spec.time_limit} turns.")
    return False


def attributes_of(catalogue: Catalogue, item: int) -> list[int]:
    """The attributes of an item."""
    every = jnp.arange(catalogue.num_attributes)
    has = links_lib.has(catalogue.links, jnp.int32(item), every)
    return np.flatnonzero(has).tolist()


def _answer(  # noqa: PLR0913 (the state of the conversation, and the two ends of it)
    catalogue: Catalogue,
    state: Any,
    action: Any,
    item: int,
    ask: Ask,
    tell: Tell,
    heading: str,
) -> int:
    """An item of which the person's answer is true; -1: none of those recommended."""
    if int(action.attribute) >= 0:
        wanted = int(action.attribute)
        carriers = np.asarray(links_lib.carriers(catalogue.links, jnp.int32(wanted)))
        truth = bool(carriers[item])
        text = f"{heading}Attribute {wanted}? [{'Y/n' if truth else 'y/N'}] "
        said = _yes(text, truth, ask, tell)
        # Any item will do that has it, or has it not; one that is left if there is.
        fits = np.flatnonzero(carriers == said)
        left = fits[np.asarray(state.candidate)[fits]]
        if len(fits) == 0:
            tell(f"Every item has attribute {wanted}, so yours does.")
            return int(np.flatnonzero(carriers)[0])
        return int(left[0] if len(left) else fits[0])
    items = [int(v) for v in action.items if v >= 0]
    tell(f"{heading}I recommend the items {_listed(items)}.")
    return _which(items, item, ask, tell)


def _yes(text: str, truth: bool, ask: Ask, tell: Tell) -> bool:
    while True:
        said = ask(text).strip().lower()
        if said in ("", "y", "yes", "n", "no"):
            return said.startswith("y") if said else truth
        tell("y or n, please; nothing for the answer that is true of your item")


def _which(items: list[int], item: int, ask: Ask, tell: Tell) -> int:
    truth = item if item in items else -1
    hint = truth if truth >= 0 else "none"
    while True:
        said = ask(f"Is it among them? its number, or none [{hint}] ").strip().lower()
        if said in ("", "none", "n", "no"):
            return -1 if said else truth
        if said.isdecimal() and int(said) in items:
            return int(said)
        tell(f"one of {_listed(items)}, or none")


def _listed(numbers: list[int], most: int = 40) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
