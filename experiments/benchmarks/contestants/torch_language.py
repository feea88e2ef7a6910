"""PyTorch and transformers: sampling, fine-tuning or DPO of a GPT-2 of the same size.

It runs in a Python of its own: `pip install torch transformers`.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.contestants import serve
from experiments.benchmarks.contestants.setting import LANGUAGE

BETA, DATA = 0.1, 512
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    """Answers in tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("sampling", "sft", "dpo"), required=True)
    parser.add_argument("--threads", type=int, default=CORES)
    options = parser.parse_args()

    import torch
    import transformers

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = LANGUAGE
    config = transformers.GPT2Config(
        vocab_size=size["vocabulary"],
        n_embd=size["width"],
        n_layer=size["layers"],
        n_head=size["heads"],
        n_positions=size["length"],
        bos_token_id=None,
        eos_token_id=None,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    model = transformers.GPT2LMHeadModel(config)
    make = {"sampling": sampling, "sft": tuning, "dpo": preferring}[options.task]
    serve.serve(make(torch, model), ("torch", "transformers"))


def sampling(torch: Any, model: Any) -> Callable[[], int]:
    """`generate` with its cache."""
    model.eval()
    prompt = torch.ones(LANGUAGE["responses"], LANGUAGE["prompt"], dtype=torch.long)
    count = LANGUAGE["response"]

    def advance() -> int:
        with torch.inference_mode():
            found = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                top_k=0,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
            )
        return found[:, prompt.shape[1] :].numel()

    return advance


def learner(torch: Any, model: Any) -> Callable[[Any], None]:
    """A step of AdamW on a loss, its gradient clipped, as fast as PyTorch has it."""
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, fused=True)

    def step(loss: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()

    return step


def tuning(torch: Any, model: Any) -> Callable[[], int]:
    """Cross entropy of the responses."""
    rows, first = LANGUAGE["rows"], LANGUAGE["prompt"]
    data = torch.randint(LANGUAGE["vocabulary"], (DATA, LANGUAGE["length"]))
    step = learner(torch, model)

    def advance() -> int:
        tokens = data[torch.randint(DATA, (rows,))]
        logits = model(tokens, use_cache=False).logits[:, first - 1 : -1]
        step(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), tokens[:, first:].flatten()
            )
        )
        return tokens.numel()

    return advance


def preferring(torch: Any, model: Any) -> Callable[[], int]:
    """DPO: chosen and rejected in one batch, the reference without a gradient."""
    reference = copy.deepcopy(model).eval()
    pairs, first = LANGUAGE["pairs"], LANGUAGE["prompt"]
    shape = (DATA, LANGUAGE["length"])
    chosen, rejected = (torch.randint(LANGUAGE["vocabulary"], shape) for _ in range(2))
    step = learner(torch, model)

    def log_prob(network: Any, tokens: Any) -> Any:
        logits = network(tokens, use_cache=False).logits[:, first - 1 : -1]
        price = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, first:].flatten(), reduction="none"
        )
        return -price.view(len(tokens), -1).sum(1)

    def advance() -> int:
        rows = torch.randint(DATA, (pairs,))
        tokens = torch.cat([chosen[rows], rejected[rows]])
        with torch.no_grad():
            old = log_prob(reference, tokens)
        better, worse = (log_prob(model, tokens) - old).chunk(2)
        step(-torch.nn.functional.logsigmoid(BETA * (better - worse)).mean())
        return tokens.numel()

    return advance


if __name__ == "__main__":
    main()
