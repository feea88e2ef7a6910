"""A catalogue invented from a latent space: users, items and attributes are vectors."""

from __future__ import annotations

import dataclasses

import numpy as np

from envs.conversation.catalogue import catalogue
from rlx.ops.catalogue import Catalogue


@dataclasses.dataclass(frozen=True)
class World:
    """Sizes of a synthetic catalogue."""

    num_users: int = 64
    num_items: int = 256
    num_attributes: int = 32
    width: int = 8
    """D of the latent space."""
    least: int = 3
    """Fewest attributes of an item."""
    most: int = 8
    """Most attributes of an item."""
    sharpness: float = 2.0
    """Users take items with probability ∝ exp(sharpness · z_u·z_v)."""
    num_interactions: int = 2048
    num_parents: int = 0
    """Questions, if enumerated; 0: one for each attribute."""

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
          ValueError: one is impossible.
        """
        for name in ("num_users", "num_items", "width", "least", "num_interactions"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not self.least <= self.most <= self.num_attributes:
            raise ValueError(
                f"items have {self.least} to {self.most} of {self.num_attributes} "
                "attributes: order these numbers"
            )
        if not 0 <= self.num_parents <= self.num_attributes:
            raise ValueError(
                f"num_parents={self.num_parents} must lie in 0 ... "
                f"{self.num_attributes}"
            )


def synthetic(
    world: World | None = None, *, seed: int = 0, dense: bool | None = None
) -> Catalogue:
    """Draws a catalogue; its embeddings are the true latent vectors.

    z_u, z_v, a_p ~ N(0, I/√D); P_v are the m attributes with the greatest z_v·a_p, m
    uniform in `least` … `most`; interactions are draws u uniform, v ∝ exp(2 z_u·z_v).

    Args:
      world: sizes.
      seed: of the draw.
      dense: see `envs.conversation.catalogue.catalogue`.
    """
    world = world or World()
    generator = np.random.default_rng(seed)
    users, items, attributes = (
        generator.normal(size=(count, world.width)) / world.width**0.25
        for count in (world.num_users, world.num_items, world.num_attributes)
    )
    order = np.argsort(-(items @ attributes.T), axis=1)
    counts = generator.integers(world.least, world.most + 1, world.num_items)
    edges = [(v, p) for v, m in enumerate(counts) for p in order[v, :m]]
    logits = world.sharpness * users @ items.T
    # Gumbel noise: its argmax is a draw from the softmax.
    chosen = generator.integers(0, world.num_users, world.num_interactions)
    noise = generator.gumbel(size=(world.num_interactions, world.num_items))
    targets = np.argmax(logits[chosen] + noise, axis=1)
    parents = None
    if world.num_parents:
        parents = np.arange(world.num_attributes) % world.num_parents
    return catalogue(
        np.array(edges),
        users=users,
        items=items,
        attributes=attributes,
        interactions=np.stack([chosen, targets], axis=1),
        parents=parents,
        dense=dense,
    )
