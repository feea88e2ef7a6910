"""Weights of GPT-2 and Llama, as Hugging Face keeps them, into `transformer`.

A folder with `config.json` and `model.safetensors`, or the parts that
`model.safetensors.index.json` names. GPT-2: Radford et al. 2019; Llama: Touvron et al.
2023, https://arxiv.org/abs/2302.13971. Nothing is fetched: the folder must be there.

safetensors is imported here alone and only when used: `pip install 'rlx[language]'`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.networks.transformer import Config
from rlx.types import Params

Tensors = dict[str, np.ndarray]
CONFIG, WEIGHTS, INDEX = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)


class PretrainedError(ValueError):
    """Weights cannot be read or used; the message says what to do."""


def load(folder: str | os.PathLike[str]) -> tuple[Config, Params]:
    """The shape and the parameters, float32, of the model in a folder.

    `transformer.decoder(config).apply(params, tokens)` gives its logits; `config` may
    be changed where it does not change the parameters' shapes (`dtype`). Adapters are
    added by `with_adapters`.

    Raises:
      PretrainedError: no such files, a damaged one, another kind of model, or a variant
        of it that `transformer` does not compute.
    """
    folder = Path(folder)
    said = _read_json(folder / CONFIG)
    kind = said.get("model_type")
    if kind not in _READERS:
        raise PretrainedError(
            f"{folder / CONFIG}: model_type {kind!r} is not known: choose one of "
            f"{sorted(_READERS)}"
        )
    tensors = _Reader(folder, _read_tensors(folder))
    try:
        return _READERS[kind](said, tensors)
    except KeyError as error:
        raise PretrainedError(f"{folder / CONFIG}: no field {error}") from error


def with_adapters(config: Config, params: Params, fresh: Params) -> Params:
    """Parameters with the low-rank adapters of fresh ones, which change no output yet.

    Args:
      config: with `lora_rank` > 0.
      params: as `load` gives them.
      fresh: `transformer.init(config, key)`.

    Raises:
      PretrainedError: the config has no adapters.
    """
    if not config.lora_rank:
        raise PretrainedError("the config has no adapters: give it a lora_rank")
    layers = dict(params["layers"])
    for name, weights in fresh["layers"].items():
        adapters = {k: x for k, x in weights.items() if k.startswith("lora_")}
        layers[name] = {**layers[name], **adapters}
    return {**params, "layers": layers}


# ------------------------------------------------------------------- the two kinds


def _gpt2(said: dict[str, Any], tensors: _Reader) -> tuple[Config, Params]:
    tensors.require(
        said,
        activation_function=("gelu_new", "gelu_pytorch_tanh"),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    tensors.prefix = "transformer." if "transformer.wte.weight" in tensors.found else ""
    width, count = said["n_embd"], said["n_layer"]
    config = Config(
        vocabulary_size=said["vocab_size"],
        width=width,
        num_layers=count,
        num_heads=said["n_head"],
        hidden_width=said.get("n_inner") or 4 * width,
        max_length=said["n_positions"],
        positions="learned",
        normalization="layer",
        epsilon=said.get("layer_norm_epsilon", 1e-5),
        activation="gelu",
        bias=True,
        tied=tensors.tied(said),
    )

    def norm(name: str) -> dict[str, np.ndarray]:
        return {
            "scale": tensors.take(f"{name}.weight", (width,)),
            "shift": tensors.take(f"{name}.bias", (width,)),
        }

    def linear(name: str, into: int, out: int) -> dict[str, np.ndarray]:
        return {
            "kernel": tensors.take(f"{name}.weight", (into, out)),  # stored [in, out]
            "bias": tensors.take(f"{name}.bias", (out,)),
        }

    def layer(i: int) -> Params:
        whole = linear(f"h.{i}.attn.c_attn", width, 3 * width)
        parts = {k: np.split(x, 3, axis=-1) for k, x in whole.items()}
        three = [{k: x[j] for k, x in parts.items()} for j in range(3)]
        return {
            "attention_norm": norm(f"h.{i}.ln_1"),
            "mlp_norm": norm(f"h.{i}.ln_2"),
            **dict(zip(("query", "key", "value"), three, strict=True)),
            "output": linear(f"h.{i}.attn.c_proj", width, width),
            "up": linear(f"h.{i}.mlp.c_fc", width, config.hidden),
            "down": linear(f"h.{i}.mlp.c_proj", config.hidden, width),
        }

    params = {
        "embedding": tensors.take("wte.weight", (config.vocabulary_size, width)),
        "positions": tensors.take("wpe.weight", (config.max_length, width)),
        "layers": _stacked(layer, count),
        "final": norm("ln_f"),
    }
    return config, _with_head(config, params, tensors)


def _llama(said: dict[str, Any], tensors: _Reader) -> tuple[Config, Params]:
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    tensors.require(said, hidden_act=("silu",))
    tensors.require({"rope_type": kind}, rope_type=("default",))
    tensors.prefix = "model."
    width, count = said["hidden_size"], said["num_hidden_layers"]
    heads = said["num_attention_heads"]
    config = Config(
        vocabulary_size=said["vocab_size"],
        width=width,
        num_layers=count,
        num_heads=heads,
        num_kv_heads=said.get("num_key_value_heads") or heads,
        head_width=said.get("head_dim") or width // heads,
        hidden_width=said["intermediate_size"],
        max_length=said["max_position_embeddings"],
        rope_base=rope.get("rope_theta", said.get("rope_theta", 10_000.0)),
        epsilon=said.get("rms_norm_eps", 1e-6),
        tied=tensors.tied(said),
    )
    whole, part = (n * config.head_size for n in (heads, config.kv_heads))

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": tensors.take(f"{name}.weight", (width,))}

    def linear(name: str, into: int, out: int) -> dict[str, np.ndarray]:
        weights = {"kernel": tensors.take(f"{name}.weight", (out, into)).T}
        if tensors.has(f"{name}.bias"):
            weights["bias"] = tensors.take(f"{name}.bias", (out,))
        return weights

    def layer(i: int) -> Params:
        at, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        return {
            "attention_norm": norm(f"layers.{i}.input_layernorm"),
            "mlp_norm": norm(f"layers.{i}.post_attention_layernorm"),
            "query": linear(f"{at}.q_proj", width, whole),
            "key": linear(f"{at}.k_proj", width, part),
            "value": linear(f"{at}.v_proj", width, part),
            "output": linear(f"{at}.o_proj", whole, width),
            "gate": linear(f"{mlp}.gate_proj", width, config.hidden),
            "up": linear(f"{mlp}.up_proj", width, config.hidden),
            "down": linear(f"{mlp}.down_proj", config.hidden, width),
        }

    params = {
        "embedding": tensors.take(
            "embed_tokens.weight", (config.vocabulary_size, width)
        ),
        "layers": _stacked(layer, count),
        "final": norm("norm"),
    }
    return config, _with_head(config, params, tensors)


_READERS: dict[str, Callable[[dict[str, Any], Any], tuple[Config, Params]]] = {
    "gpt2": _gpt2,
    "llama": _llama,
}


def _stacked(layer: Callable[[int], Params], count: int) -> Params:
    """Layer by layer into leaves `[count, ...]`."""
    layers = [layer(i) for i in range(count)]
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *layers)


def _with_head(config: Config, params: Params, tensors: _Reader) -> Params:
    params = jax.tree.map(jnp.asarray, params)
    if not config.tied:
        tensors.prefix = ""
        shape = (config.vocabulary_size, config.width)
        params["head"] = jnp.asarray(tensors.take("lm_head.weight", shape).T)
    return params


# ------------------------------------------------------------------------ reading


class _Reader:
    """Tensors by name, each checked when it is taken."""

    def __init__(self, folder: Path, found: Tensors):
        self.folder, self.found, self.prefix = folder, found, ""

    def has(self, name: str) -> bool:
        return self.prefix + name in self.found

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        name = self.prefix + name
        if name not in self.found:
            raise PretrainedError(f"{self.folder}: the weights lack {name}")
        tensor = self.found[name]
        if tensor.shape != shape:
            raise PretrainedError(
                f"{self.folder}: {name} has shape {tensor.shape}, but "
                f"{CONFIG} asks for {shape}"
            )
        return tensor.astype(np.float32)

    def tied(self, said: dict[str, Any]) -> bool:
        alone = "lm_head.weight" not in self.found
        return alone or said.get("tie_word_embeddings", False)

    def require(self, said: dict[str, Any], **allowed: tuple[Any, ...]) -> None:
        """Refuses variants whose logits would be others, without a word."""
        for name, values in allowed.items():
            given = said.get(name, values[0])
            if given not in values:
                raise PretrainedError(
                    f"{self.folder / CONFIG}: {name}={given!r} is not supported, only "
                    f"{' or '.join(map(repr, values))}"
                )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise PretrainedError(f"{path}: {reason}") from error
    except ValueError as error:
        raise PretrainedError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise PretrainedError(f"{path}: not a JSON object")
    return found


def _read_tensors(folder: Path) -> Tensors:
    names = [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
    library = _require_library()
    found: Tensors = {}
    for path in (folder / name for name in names):
        if not path.is_file():
            raise PretrainedError(
                f"{path}: no such file: only safetensors are read, no pickles"
            )
        try:
            found.update(library.numpy.load_file(path))
        except (library.SafetensorError, OSError, ValueError) as error:
            raise PretrainedError(f"{path}: damaged or incomplete: {error}") from error
    return found


def _require_library() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise PretrainedError(
            "safetensors is missing: pip install 'rlx[language]'"
        ) from error
    return safetensors
