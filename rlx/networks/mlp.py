"""Multi-layer perceptrons, orthogonally initialised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from rlx.networks.initializers import orthogonal
from rlx.types import Array, Network

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,
    "silu": nn.silu,
    "elu": nn.elu,
    "gelu": nn.gelu,
}


def activation_named(name: str) -> Callable[[Array], Array]:
    """The activation function called `name`.

    Raises:
      ValueError: no such activation; the message lists them.
    """
    try:
        return ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(sorted(ACTIVATIONS))
        raise ValueError(
            f"unknown activation {name!r}: choose one of {known}"
        ) from None


class MLP(nn.Module):
    """`[..., D] -> [..., sizes[-1]]`; linear after the last layer unless told.

    Orthogonal weights, gain sqrt(2) in hidden layers and `final_scale` in the last
    (Andrychowicz et al. 2021, https://arxiv.org/abs/2006.05990, section 3.2: a small
    last policy layer matters more than any other choice of initialisation).
    """

    sizes: Sequence[int]
    activation: str = "tanh"
    final_scale: float = 1.0
    activate_final: bool = False

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the layers."""
        activation = activation_named(self.activation)
        outputs = inputs
        for i, size in enumerate(self.sizes):
            last = i == len(self.sizes) - 1 and not self.activate_final
            scale = self.final_scale if last else float(np.sqrt(2.0))
            init = orthogonal(scale)
            outputs = nn.Dense(size, kernel_init=init, name=f"layer_{i}")(outputs)
            if not last:
                outputs = activation(outputs)
        return outputs


def mlp(
    input_size: int,
    sizes: Sequence[int],
    *,
    activation: str = "tanh",
    final_scale: float = 1.0,
) -> Network:
    """A perceptron as a `Network`: `apply(params, inputs [..., D]) -> [..., K]`.

    Args:
      input_size: D, features of the input.
      sizes: hidden sizes and, last, the number of outputs K.
      activation: one of `ACTIVATIONS`, between layers.
      final_scale: gain of the last layer's orthogonal weights.
    """
    activation_named(activation)
    module = MLP(tuple(sizes), activation, final_scale)
    return Network(
        init=lambda key: module.init(key, jnp.zeros((input_size,)))["params"],
        apply=lambda params, inputs: module.apply({"params": params}, inputs),
    )
