"""Runs glitchrun on a GPU: do strategies run, do verdicts agree, how fast, how much memory?

    python benchmarks/gpu.py [--write docs/gpu.md] [--memory-table FOLDER] [--small]

It needs no network, no MLflow and no weights beyond tests/data. It prints Markdown; `--write` puts
the tables into that page under the date and the name of the GPU.

1. Every strategy on the trained stand-in of 640 tokens, in each quantization. Verdicts in float32
   must equal the CPU's, ranks included; in narrower numbers the differences are counted.
2. Verification, screening and sampling on random models of true shapes (SmolLM2-135M, Llama 7B),
   next to one forward pass per token and the hardware bound: the products with the model's own
   matrices, one after another, with as many rows (`support/gpu_speed.py`).
3. A Mixtral of 6 GB on the device, and streamed with 4 GB of it: verdicts, rates, memory and bytes
   read (`support/gpu_streaming.py`; 7 GB in the folder for temporary files).
4. With `--memory-table FOLDER` (45 GB of free space): loading and verifying a Mixtral of 22 billion
   random weights in bfloat16, int8 and int4 (`support/gpu_memory.py`).

Without a GPU everything runs on the CPU with small shapes, and the page says so. Exits with 1 if a
strategy fails or a float32 verdict differs.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.support.gpu_memory import measure_memory
from benchmarks.support.gpu_speed import DEVICE, GPU, measure_speed
from benchmarks.support.gpu_streaming import measure_streaming
from benchmarks.support.page import MarkdownPage, heading, replace_section, versions
from glitchrun.events import Batch, Verified
from glitchrun.model import load
from glitchrun.probing.backend_selection import best_backend
from glitchrun.prompts.detect import detect
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import ModelSpec, Spec, Thresholds
from glitchrun.strategies.context import Context
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import row_norms

ORACLE = Path(__file__).parents[1] / "tests" / "data" / "oracle" / "nowllm-0829"
QUANTIZATIONS = ("float32", "bfloat16", "int8", "int4")
PLANTED = json.loads((ORACLE / "planted.json").read_text(encoding="utf-8"))["planted"]
TOKENS = {"ids": [*PLANTED[:4], 40, 300, 301, 302]}
SAMPLED = {"tokens": TOKENS, "attempts": 3, "max_new_tokens": 8}
STEPS: Sequence[tuple[str, dict[str, Any]]] = (
    ("scan", {"probes": "strict", "controls": 8}),
    *(
        ("mine", {"search": name, "iterations": 4, "batch_size": 8})
        for name in ("gradient", "surrogate", "screen", "low-norm", "random")
    ),
    ("mine", {"search": "cascade"}),
    ("test", {"tokens": TOKENS, "controls": 4}),
    ("validate", {**SAMPLED, "controls": 4}),
    ("validate", {**SAMPLED, "sequential": True}),
    ("predict", {"prompts": [{"text": "The quick brown", "expected": "fox"}], "top_k": 3}),
    ("classify", {"tests": ["repetition", "drift"], "controls": 2, **SAMPLED}),
    ("genetic", {"base_text": "The quick", "wanted": 90, "population": 12, "generations": 3}),
    ("profile", {"workload": {"prompt_tokens": 9, "batch_size": 2, "new_tokens": 4, "repeats": 2}}),
    ("check", {"glitch": PLANTED[:2], "controls": 4, "attempts": 2, "max_new_tokens": 3}),
)


def oracle(quantization: str, device: str) -> Context:
    """Returns the context of a strategy on the trained stand-in."""
    spec = Spec(
        name="gpu",
        model=ModelSpec(path=str(ORACLE), quantization=quantization, device=device),
        steps=(),
        template="auto",
        seed=5,
        thresholds=Thresholds(asr=0.5),
    )
    model = load(spec.model, Path(".cache/glitchrun"))
    return Context(
        spec=spec,
        backend=best_backend(model)[0],
        vocabulary=Vocabulary(model.tokenizer, row_norms(model.embedding_blocks())),
        template=detect(spec.template, model.tokenizer, model.config, spec.model.path),
        free_bytes=1 << 30,
        earlier={},
    )


def facts(context: Context, name: str, params: Mapping[str, Any]) -> list[Any]:
    """Returns the facts that a strategy yields."""
    strategy = STRATEGIES[name]
    events = strategy.run(strategy.configure(params), context, ())
    return [fact for event in events if isinstance(event, Batch) for fact in event.facts]


def verdicts(context: Context) -> dict[tuple[int, str], tuple[bool, int, int]]:
    """Returns passed, most likely token and rank of every token in scope with all three probes."""
    return {
        (fact.token.id, name): (result.passed, result.argmax, result.rank)
        for fact in facts(context, "scan", {"probes": "strict"})
        if isinstance(fact, Verified)
        for name, result in fact.probes.items()
    }


def run_strategies(page: MarkdownPage) -> None:
    """Adds a table of strategies that ran, and of verdicts that differ from the CPU's."""
    page.add("### Every strategy on the trained stand-in, and verdicts against the CPU's")
    page.table(
        (
            "weights",
            "strategies run",
            "verdicts",
            "other verdict",
            "other most likely",
            "other rank",
        )
    )
    for quantization in QUANTIZATIONS:
        expected = verdicts(oracle(quantization, "cpu"))
        context = oracle(quantization, DEVICE.type)
        found = verdicts(context)
        differs = [
            sum(mine[part] != found[key][part] for key, mine in expected.items())
            for part in range(3)
        ]
        done = sum(_runs(page, context, quantization, *step) for step in STEPS)
        page.row(quantization, f"{done} of {len(STEPS)}", len(expected), *differs)
        if quantization == "float32" and any(differs):
            page.faults.append(f"float32 verdicts differ from the CPU's: {differs}")


def _runs(
    page: MarkdownPage, context: Context, quantization: str, name: str, params: Mapping[str, Any]
) -> bool:
    try:
        facts(context, name, params)
    except Exception:  # noqa: BLE001 - every fault is reported, and the other steps still run
        page.faults.append(f"{name} {params.get('search', '')} in {quantization} failed")
        traceback.print_exc()
        return False
    return True


@click.command()
@click.option("--write", type=click.Path(path_type=Path), help="The page to put the tables into.")
@click.option(
    "--memory-table",
    "folder",
    type=click.Path(path_type=Path),
    help="A folder with 45 GB of free space.",
)
@click.option("--small", is_flag=True, help="Use cut-down shapes, as without a GPU.")
def main(write: Path | None, folder: Path | None, small: bool) -> None:
    small = small or not GPU
    page = MarkdownPage()
    page.add(heading())
    page.add()
    page.add(versions())
    page.add()
    run_strategies(page)
    measure_speed(page, small)
    measure_streaming(page, small)
    if folder is not None:
        measure_memory(page, folder, small)
    if write is not None:
        replace_section(write, page.lines)
    if page.faults:
        raise SystemExit("\n".join(page.faults))


if __name__ == "__main__":
    main()
