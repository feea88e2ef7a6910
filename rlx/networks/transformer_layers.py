"""The parts of a decoder: its shape, its layers, its first parameters.

`rlx.networks.transformer` joins them, and says whose ideas they are.

Shapes: B sequences, S tokens, L cache slots, V words, D width, H heads, K key-value
heads, d head width.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from rlx.types import Array, Key, Params

INITIAL_DEVIATION = 0.02
"""Of weights and embeddings (GPT-2)."""
MASKED = -1e30
"""A finite score, so that a query which may see nothing gives no NaN."""
ADAPTED = ("query", "key", "value", "output")
"""What low-rank adapters are added to."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a decoder.

    Raises:
      ValueError: sizes that do not fit, or an unknown name.
    """

    vocabulary_size: int
    """V."""
    width: int = 64
    """D."""
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int | None = None
    """K, which divides `num_heads`; None: as many as heads."""
    head_width: int | None = None
    """d; None: `width / num_heads`."""
    hidden_width: int | None = None
    """Of the MLP; None: 4 D, or 8/3 D rounded up to a multiple of 8 with "swiglu"."""
    max_length: int = 1024
    """Positions that there are; the longest sequence."""
    positions: str = "rotary"
    """Or "learned"."""
    rope_base: float = 10_000.0
    """Of rotary positions."""
    normalization: str = "rms"
    """Or "layer"."""
    epsilon: float = 1e-5
    """Of the normalisation."""
    activation: str = "swiglu"
    """Or "gelu" (GPT-2's tanh form)."""
    bias: bool = False
    """Biases of all matrices but the head."""
    tied: bool = True
    """The head is the embedding."""
    lora_rank: int = 0
    """Rank of the adapters of the attention's matrices; 0: none."""
    lora_scale: float = 1.0
    """Times what the adapters add."""
    dtype: str = "float32"
    """Of the matrix products; softmax, norms and logits are float32 always."""

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "width", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name, known in (
            ("positions", ("rotary", "learned")),
            ("normalization", ("rms", "layer")),
            ("activation", ("swiglu", "gelu")),
        ):
            if getattr(self, name) not in known:
                given = getattr(self, name)
                raise ValueError(f"{name} must be one of {known}, got {given!r}")
        if self.head_width is None and self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} is no multiple of num_heads={self.num_heads}: "
                "change one, or give head_width"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads={self.kv_heads} does not divide "
                f"num_heads={self.num_heads}"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(
                f"rotary positions need an even head, got {self.head_size}"
            )

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Width of a head, d."""
        return self.head_width or self.width // self.num_heads

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        if self.hidden_width is not None:
            return self.hidden_width
        if self.activation == "gelu":
            return 4 * self.width
        return -(-8 * self.width // 24) * 8


# ------------------------------------------------------------------ parts of a layer


def embed(config: Config, params: Params, tokens: Array, positions: Array) -> Array:
    """`[B, S, D]` what the first layer reads."""
    x = params["embedding"][tokens]
    if config.positions == "learned":
        x = x + params["positions"][positions]
    return x.astype(jnp.float32)


def queries_keys_values(
    config: Config, layer: Params, x: Array, positions: Array
) -> tuple[Array, Array, Array]:
    """What attention reads: `[B, S, H, d]`, `[B, K, S, d]` and `[B, K, S, d]`.

    Keys and values have their heads before their tokens, as caches keep them: what a
    head reads lies together, which is several times faster on a CPU.

    Args:
      config: of the network.
      layer: parameters of one layer.
      x: `[B, S, D]` residual stream.
      positions: `int[B, S]`.
    """
    normal = normalize(config, layer["attention_norm"], x)
    queries, keys, values = (
        _linear(config, layer, name, normal).reshape(
            *x.shape[:-1], -1, config.head_size
        )
        for name in ("query", "key", "value")
    )
    if config.positions == "rotary":
        queries, keys = (
            rotate(y, positions, config.rope_base) for y in (queries, keys)
        )
    return queries, jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2)


def attention(queries: Array, keys: Array, values: Array, seen: Array) -> Array:
    """Scaled dot products, softmax in float32; groups of heads share keys.

    Args:
      queries: `[B, S, H, d]`.
      keys: `[B, K, L, d]`, or `[B K, L, d]`; head h reads that of h K / H.
      values: as `keys`.
      seen: `bool[B, S, L]`.

    Returns:
      `[B, S, H, d]`.
    """
    batch, size, heads, width = queries.shape
    keys, values = (x.reshape(-1, *x.shape[-2:]) for x in (keys, values))
    groups = keys.shape[0] // batch
    grouped = queries.reshape(batch, size, groups, heads // groups, width)
    grouped = grouped.transpose(0, 2, 3, 1, 4).reshape(len(keys), -1, width)
    scores = jnp.einsum(
        "nqd,nld->nql", grouped, keys, preferred_element_type=jnp.float32
    )
    scores = scores.reshape(batch, groups, heads // groups, size, -1)
    scores = jnp.where(seen[:, None, None], scores / math.sqrt(width), MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    weights = weights.reshape(*grouped.shape[:-1], -1)
    mixed = jnp.einsum("nql,nld->nqd", weights, values)
    mixed = mixed.reshape(batch, groups, heads // groups, size, width)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape)


def after_attention(config: Config, layer: Params, x: Array, mixed: Array) -> Array:
    """The rest of a layer: projection, residual, MLP, residual. `[B, S, D]`.

    Args:
      config: of the network.
      layer: parameters of one layer.
      x: `[B, S, D]` residual stream before the layer.
      mixed: `[B, S, H, d]` what attention gave.
    """
    flat = mixed.reshape(*mixed.shape[:-2], -1)
    x = x + _linear(config, layer, "output", flat).astype(jnp.float32)
    normal = normalize(config, layer["mlp_norm"], x)
    inner = _linear(config, layer, "up", normal)
    if config.activation == "swiglu":
        inner = jax.nn.silu(_linear(config, layer, "gate", normal)) * inner
    else:
        inner = jax.nn.gelu(inner, approximate=True)
    return x + _linear(config, layer, "down", inner).astype(jnp.float32)


def logits(config: Config, params: Params, features: Array) -> Array:
    """`float32[..., V]` from what the last layer left."""
    head = params["embedding"].T if config.tied else params["head"]
    kind = config.dtype
    return jnp.matmul(
        features.astype(kind), head.astype(kind), preferred_element_type=jnp.float32
    )


def normalize(config: Config, weights: Params, x: Array) -> Array:
    """RMS or layer norm over the last axis, in float32."""
    x = x.astype(jnp.float32)
    if config.normalization == "layer":
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(square + config.epsilon)
    x = x * _broadcast(weights["scale"], x)
    if config.normalization == "layer":
        x = x + _broadcast(weights["shift"], x)
    return x


def rotate(x: Array, positions: Array, base: float) -> Array:
    """Rotary positions: halves of each head turn by position x base^(-2i/d).

    Args:
      x: `[B, S, heads, d]`.
      positions: `int[B, S]`.
      base: of the wavelengths.
    """
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * rates[None, None]
    cosine, sine = (f(angles)[..., None, :] for f in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _linear(config: Config, layer: Params, name: str, x: Array) -> Array:
    weights = layer[name]
    x = x.astype(config.dtype)
    y = x @ weights["kernel"].astype(config.dtype)
    if "bias" in weights:
        y = y + _broadcast(weights["bias"], y).astype(config.dtype)
    if "lora_in" in weights:
        low = x @ weights["lora_in"].astype(config.dtype)
        y = y + config.lora_scale * (low @ weights["lora_out"].astype(config.dtype))
    return y


def _broadcast(vector: Array, like: Array) -> Array:
    return jnp.expand_dims(vector, tuple(range(like.ndim - 1)))


# ------------------------------------------------------------------------ parameters


def init(config: Config, key: Key) -> Params:
    """Fresh parameters: deviation 0.02, residual outputs smaller (GPT-2)."""
    embedding_key, position_key, head_key, layers_key = jax.random.split(key, 4)
    size, words = config.width, config.vocabulary_size

    def normal(key: Key, *shape: int) -> Array:
        return INITIAL_DEVIATION * jax.random.normal(key, shape)

    params = {
        "embedding": normal(embedding_key, words, size),
        "layers": jax.vmap(lambda key: _init_layer(config, key))(
            jax.random.split(layers_key, config.num_layers)
        ),
        "final": _init_norm(config),
    }
    if config.positions == "learned":
        params["positions"] = normal(position_key, config.max_length, size)
    if not config.tied:
        params["head"] = normal(head_key, size, words)
    return params


def _init_layer(config: Config, key: Key) -> Params:
    size, inner = config.width, config.hidden
    whole, part = (n * config.head_size for n in (config.num_heads, config.kv_heads))
    shapes = {
        "query": (size, whole),
        "key": (size, part),
        "value": (size, part),
        "output": (whole, size),
        "up": (size, inner),
        "down": (inner, size),
    }
    if config.activation == "swiglu":
        shapes["gate"] = (size, inner)
    layer: dict[str, Any] = {
        "attention_norm": _init_norm(config),
        "mlp_norm": _init_norm(config),
    }
    keys = jax.random.split(key, len(shapes))
    for (name, shape), key in zip(shapes.items(), keys, strict=True):
        kernel_key, lora_key = jax.random.split(key)
        last = name in ("output", "down")
        scale = INITIAL_DEVIATION / math.sqrt(2 * config.num_layers if last else 1)
        weights = {"kernel": scale * jax.random.normal(kernel_key, shape)}
        if config.bias:
            weights["bias"] = jnp.zeros(shape[1])
        if config.lora_rank and name in ADAPTED:
            into = (shape[0], config.lora_rank)
            weights["lora_in"] = jax.random.normal(lora_key, into) / math.sqrt(shape[0])
            weights["lora_out"] = jnp.zeros((config.lora_rank, shape[1]))
        layer[name] = weights
    return layer


def _init_norm(config: Config) -> Params:
    weights = {"scale": jnp.ones(config.width)}
    if config.normalization == "layer":
        weights["shift"] = jnp.zeros(config.width)
    return weights


def is_adapter(params: Params) -> Params:
    """True for the leaves of low-rank adapters, for `optax.partition` and the like."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "lora_" in jax.tree_util.keystr(path), params
    )
