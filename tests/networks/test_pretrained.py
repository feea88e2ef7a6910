"""Weights in Hugging Face's layout: their logits from the papers, and from the library.

The oracles below take the tensors by the names in the file and know nothing of rlx.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from rlx.networks import pretrained, transformer
from rlx.networks.pretrained import PretrainedError

safetensors = pytest.importorskip("safetensors.numpy")
TOKENS = np.random.default_rng(1).integers(0, 13, (2, 9))
GPT2 = {
    "model_type": "gpt2", "vocab_size": 13, "n_embd": 12, "n_layer": 2, "n_head": 3,
    "n_positions": 16, "n_inner": None, "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 13, "hidden_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 4, "intermediate_size": 20, "max_position_embeddings": 16,
    "rms_norm_eps": 1e-6, "rope_theta": 500.0, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip


def shapes(said: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the library writes them."""
    found = {}
    if said["model_type"] == "gpt2":
        d, words = said["n_embd"], said["vocab_size"]
        for i in range(said["n_layer"]):
            at = f"transformer.h.{i}."
            for norm in ("ln_1", "ln_2"):
                found |= {f"{at}{norm}.weight": (d,), f"{at}{norm}.bias": (d,)}
            for name, a, b in (
                ("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d),
                ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d),
            ):  # fmt: skip
                found |= {f"{at}{name}.weight": (a, b), f"{at}{name}.bias": (b,)}
        found |= {f"transformer.ln_f.{x}": (d,) for x in ("weight", "bias")}
        found["transformer.wpe.weight"] = (said["n_positions"], d)
        return found | {"transformer.wte.weight": (words, d)}
    d, words, inner = said["hidden_size"], said["vocab_size"], said["intermediate_size"]
    whole, part = (
        said[k] * said["head_dim"]
        for k in ("num_attention_heads", "num_key_value_heads")
    )
    for i in range(said["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}{norm}.weight"] = (d,)
        for name, a, b in (
            ("self_attn.q_proj", d, whole), ("self_attn.k_proj", d, part),
            ("self_attn.v_proj", d, part), ("self_attn.o_proj", whole, d),
            ("mlp.gate_proj", d, inner), ("mlp.up_proj", d, inner),
            ("mlp.down_proj", inner, d),
        ):  # fmt: skip
            found[f"{at}{name}.weight"] = (b, a)
    found |= {"model.norm.weight": (d,), "model.embed_tokens.weight": (words, d)}
    return found | {"lm_head.weight": (words, d)}


def tensors(said: dict) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(0.0, 0.5, shape).astype(np.float32)
        for name, shape in shapes(said).items()
    }


def write(
    folder: pathlib.Path, said: dict, weights: dict | None = None
) -> pathlib.Path:
    (folder / "config.json").write_text(json.dumps(said))
    weights = tensors(said) if weights is None else weights
    safetensors.save_file(weights, folder / "model.safetensors")
    return folder


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Causal attention of heads `[H, S, d]`, laid side by side again."""
    score = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    score[:, np.triu(np.ones(score.shape[1:], bool), 1)] = -np.inf
    mixed = softmax(score) @ v
    return mixed.swapaxes(0, 1).reshape(len(q[0]), -1)


def heads(x: np.ndarray, count: int) -> np.ndarray:
    return x.reshape(len(x), count, -1).swapaxes(0, 1)


def gpt2_logits(said: dict, w: dict, tokens: np.ndarray) -> np.ndarray:
    """Radford et al. 2019, one sequence."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    w = {k.removeprefix("transformer."): x.astype(np.float64) for k, x in w.items()}
    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    for i in range(said["n_layer"]):
        at = f"h.{i}"
        three = np.split(linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn"), 3, axis=-1)
        mixed = attend(*(heads(y, said["n_head"]) for y in three))
        x = x + linear(mixed, f"{at}.attn.c_proj")
        y = linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + linear(y, f"{at}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def llama_logits(said: dict, w: dict, tokens: np.ndarray) -> np.ndarray:
    """Touvron et al. 2023, one sequence."""
    w = {k.removeprefix("model."): x.astype(np.float64) for k, x in w.items()}
    count, groups = said["num_attention_heads"], said["num_key_value_heads"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]

    def rope(x: np.ndarray) -> np.ndarray:
        half = x.shape[-1] // 2
        rate = said["rope_theta"] ** (-2.0 * np.arange(half) / x.shape[-1])
        turn = np.exp(1j * np.arange(x.shape[1])[:, None] * rate)
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    x = w["embed_tokens.weight"][tokens]
    for i in range(said["num_hidden_layers"]):
        at = f"layers.{i}"
        y = norm(x, f"{at}.input_layernorm")
        q, k, v = (y @ w[f"{at}.self_attn.{n}_proj.weight"].T for n in "qkv")
        k, v = (np.repeat(heads(z, groups), count // groups, axis=0) for z in (k, v))
        mixed = attend(rope(heads(q, count)), rope(k), v)
        x = x + mixed @ w[f"{at}.self_attn.o_proj.weight"].T
        y = norm(x, f"{at}.post_attention_layernorm")
        gate = y @ w[f"{at}.mlp.gate_proj.weight"].T
        y = gate / (1 + np.exp(-gate)) * (y @ w[f"{at}.mlp.up_proj.weight"].T)
        x = x + y @ w[f"{at}.mlp.down_proj.weight"].T
    return norm(x, "norm") @ w.get("lm_head.weight", w["embed_tokens.weight"]).T


ORACLES = {"gpt2": (GPT2, gpt2_logits), "llama": (LLAMA, llama_logits)}


def logits(folder: pathlib.Path) -> np.ndarray:
    config, params = pretrained.load(folder)
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        np.shape, transformer.init(config, jax.random.key(0))
    )
    return np.asarray(transformer.decoder(config).apply(params, TOKENS))


@pytest.mark.parametrize("name", ORACLES)
def test_the_logits_are_those_of_the_paper(name: str, tmp_path) -> None:
    said, oracle = ORACLES[name]
    expected = [oracle(said, tensors(said), row) for row in TOKENS]
    found = logits(write(tmp_path, said))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_tied_head_and_half_precision_and_parts(tmp_path) -> None:
    """Without `lm_head` the embedding is the head; bfloat16 in two files is read."""
    weights = tensors(LLAMA)
    del weights["lm_head.weight"]
    weights = {k: x.astype(ml_dtypes.bfloat16) for k, x in weights.items()}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    names, where = list(weights), {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        safetensors.save_file({k: weights[k] for k in part}, tmp_path / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    exact = {k: x.astype(np.float32) for k, x in weights.items()}
    expected = [llama_logits(LLAMA, exact, row) for row in TOKENS]
    np.testing.assert_allclose(logits(tmp_path), expected, rtol=1e-4, atol=1e-4)


def test_adapters_are_added_and_change_nothing_yet(tmp_path) -> None:
    config, params = pretrained.load(write(tmp_path, LLAMA))
    with pytest.raises(PretrainedError, match="lora_rank"):
        pretrained.with_adapters(config, params, params)
    adapted = dataclasses.replace(config, lora_rank=2)
    fresh = transformer.init(adapted, jax.random.key(0))
    more = pretrained.with_adapters(adapted, params, fresh)
    assert jax.tree.structure(more) == jax.tree.structure(fresh)
    np.testing.assert_array_equal(
        transformer.decoder(adapted).apply(more, TOKENS),
        transformer.decoder(config).apply(params, TOKENS),
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not known"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type='llama3'"),
        ({"intermediate_size": 24}, "asks for .24, 12."),
        ({"num_hidden_layers": 3}, "lack model.layers.2"),
    ],
)
def test_what_would_be_another_model_is_refused(tmp_path, change, word) -> None:
    write(tmp_path, LLAMA)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    with pytest.raises(PretrainedError, match=word):
        pretrained.load(tmp_path)


def test_missing_and_damaged_files_are_refused(tmp_path) -> None:
    with pytest.raises(PretrainedError, match="config.json: no such file"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PretrainedError, match="not JSON"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(PretrainedError, match="only safetensors"):
        pretrained.load(tmp_path)
    path = write(tmp_path, LLAMA) / "model.safetensors"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(PretrainedError, match="no field 'hidden_size'"):
        pretrained.load(tmp_path)
    write(tmp_path, LLAMA)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match="damaged or incomplete"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize("name", ORACLES)
def test_the_logits_are_those_of_transformers(name: str, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    said = {k: v for k, v in ORACLES[name][0].items() if k != "model_type"}
    said |= {"bos_token_id": None, "eos_token_id": None}
    classes = {
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    make_config, make_model = classes[name]
    torch.manual_seed(0)
    model = make_model(make_config(**said, attn_implementation="eager")).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
        expected = model(torch.as_tensor(TOKENS)).logits.numpy()
    model.save_pretrained(tmp_path)
    found = logits(tmp_path)
    print(f"{name}: largest difference {np.abs(found - expected).max():.1e}")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
