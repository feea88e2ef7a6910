"""The encoder of UNICORN: convolution over a graph, attention over what was accepted.

Deng et al. 2021, https://arxiv.org/abs/2105.09710, section 4.1.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from rlx.ops import graph, values
from rlx.types import Array


class BipartiteConvolution(nn.Module):
    """One layer h' = ReLU(Λ h W + h B) on a graph of two sides.

    `(left [..., M, D], right [..., N, D], weights [..., M, N]) -> (left, right)`, both
    with `size` features. Equals the dense formula on the graph of all M + N nodes.
    """

    size: int
    plain: bool = False
    """Λ = A, without B and ReLU: a single sum over neighbours."""

    @nn.compact
    def __call__(
        self, left: Array, right: Array, weights: Array
    ) -> tuple[Array, Array]:
        """Applies the layer."""
        neighbours = nn.Dense(self.size, use_bias=False, name="neighbours")
        around = weights if self.plain else graph.normalised_bipartite(weights)
        # W comes where there are fewer rows: the items are many.
        new_left = around @ neighbours(right)
        new_right = neighbours(jnp.swapaxes(around, -1, -2) @ left)
        if self.plain:
            return new_left, new_right
        own = nn.Dense(self.size, name="own")
        return nn.relu(new_left + own(left)), nn.relu(new_right + own(right))


class SequenceEncoder(nn.Module):
    """A transformer's layers over a sequence with gaps, and the mean of what is there.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.1: normalisation
    after each sum; no encoding of positions, as in UNICORN.
    `(inputs [..., T, D], where bool[..., T]) -> [..., D]`, zeros where none is there.
    """

    num_layers: int = 1
    num_heads: int = 4
    feedforward: int = 400

    @nn.compact
    def __call__(self, inputs: Array, where: Array) -> Array:
        """Applies the layers."""
        outputs = inputs
        for i in range(self.num_layers):
            mask = jnp.broadcast_to(
                where[..., None, None, :],
                (*where.shape[:-1], 1, where.shape[-1], where.shape[-1]),
            )
            outputs = _layer(self, i, outputs, mask)
        return masked_mean(outputs, where)


class AcrossBatchEncoder(nn.Module):
    """What UNICORN's released code computes: attention runs along the batch.

    `(inputs [B, T, D], where) -> [B, D]`: position t of one conversation attends to
    position t of all others, and positions without content take part and count in the
    mean. Kept to measure what that costs.
    """

    num_layers: int = 1
    num_heads: int = 4
    feedforward: int = 400

    @nn.compact
    def __call__(self, inputs: Array, where: Array) -> Array:
        """Applies the layers."""
        del where
        outputs = jnp.swapaxes(inputs, 0, 1)
        for i in range(self.num_layers):
            outputs = _layer(self, i, outputs, None)
        return jnp.mean(outputs, axis=0)


def _layer(module: nn.Module, number: int, inputs: Array, mask: Array | None) -> Array:
    """One encoder layer; called inside a compact module, whose parameters it makes."""
    attention = nn.MultiHeadDotProductAttention(
        num_heads=module.num_heads, name=f"attention_{number}"
    )
    hidden = nn.LayerNorm(name=f"norm_{number}_0")(
        inputs + attention(inputs, mask=mask)
    )
    wide = nn.relu(nn.Dense(module.feedforward, name=f"wide_{number}")(hidden))
    narrow = nn.Dense(inputs.shape[-1], name=f"narrow_{number}")(wide)
    return nn.LayerNorm(name=f"norm_{number}_1")(hidden + narrow)


def masked_mean(inputs: Array, where: Array) -> Array:
    """Mean over what is there: `[..., T, D], bool[..., T] -> [..., D]`."""
    total = jnp.sum(jnp.where(where[..., None], inputs, 0.0), axis=-2)
    count = jnp.sum(where, axis=-1, keepdims=True)
    return total / jnp.maximum(count, 1)


@dataclasses.dataclass(frozen=True)
class GraphArchitecture:
    """Sizes and choices of the network."""

    hidden_size: int = 100
    num_convolutions: int = 2
    num_heads: int = 4
    feedforward: int = 400
    convolve: bool = True
    plain_convolution: bool = False
    across_batch: bool = False
    dueling: bool = True
    centred: bool = True


class GraphEncoder(nn.Module):
    """The state s of a conversation, `[..., H]`, from the graph around it.

    Nodes are the items on the one side, and user, accepted and askable attributes on
    the other.
    """

    architecture: GraphArchitecture

    @nn.compact
    def __call__(
        self, items: Array, others: Array, weights: Array, accepted: Array
    ) -> Array:
        """Encodes.

        Args:
          items: `[..., M, D]` vectors of the candidate items.
          others: `[..., N, D]` of the user, then of the accepted attributes in their
            order, then of others.
          weights: `[..., M, N]` of the edges; 0 where there is none.
          accepted: `bool[..., T]` which of the accepted attributes are there.
        """
        arch = self.architecture
        left, right = items, others
        for i in range(arch.num_convolutions):
            layer = BipartiteConvolution(
                arch.hidden_size, arch.plain_convolution, name=f"convolution_{i}"
            )
            around = weights if arch.convolve else jnp.zeros_like(weights)
            left, right = layer(left, right, around)
        sequence = right[..., 1 : 1 + accepted.shape[-1], :]
        kind = AcrossBatchEncoder if arch.across_batch else SequenceEncoder
        encoder = kind(
            num_heads=arch.num_heads, feedforward=arch.feedforward, name="sequence"
        )
        mean = encoder(sequence, accepted)
        return nn.relu(nn.Dense(arch.hidden_size, name="state")(mean))


class ActionHeads(nn.Module):
    """Q(s, a) of actions that are vectors themselves.

    `(state [..., H], actions [..., A, D], allowed bool[..., A]) -> [..., A]`.
    """

    architecture: GraphArchitecture

    @nn.compact
    def __call__(self, state: Array, actions: Array, allowed: Array) -> Array:
        """Applies both heads."""
        size = self.architecture.hidden_size
        wide = jnp.broadcast_to(
            state[..., None, :], (*actions.shape[:-1], state.shape[-1])
        )
        both = jnp.concatenate([wide, actions], axis=-1)
        hidden = nn.relu(nn.Dense(size, name="advantage_hidden")(both))
        advantages = nn.Dense(1, name="advantage")(hidden)[..., 0]
        if not self.architecture.dueling:
            return advantages
        hidden = nn.relu(nn.Dense(size, name="value_hidden")(state))
        value = nn.Dense(1, name="value")(hidden)[..., 0]
        if not self.architecture.centred:
            return value[..., None] + advantages
        return values.dueling(value, advantages, allowed)
