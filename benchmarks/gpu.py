"""What glitchrun does on a GPU: does it run, are the verdicts the CPU's, how fast, how much memory.

    python benchmarks/gpu.py [--write docs/gpu.md] [--memory-table FOLDER] [--small]

Needs no network, no MLflow and no weights beyond tests/data. It prints Markdown; `--write` puts it
into that page under the date and the card. The parts, in order:

1. Every strategy on the trained stand-in of 640 tokens, in each quantization. Verdicts in float32
   must equal the CPU's, ranks included; in narrower numbers the differences are counted.
2. Verification, screen and sampling on random models of true shapes (SmolLM2-135M, Llama 7B),
   beside one forward pass for each token and the bound: the model's own matrices multiplied with as
   many rows, one after another and nothing else.
3. With `--memory-table FOLDER` (45 GB of room): a Mixtral of 22 billion random weights in bfloat16,
   int8 and int4: loading, bytes beside the plan's, peak, verification.

Without a GPU all of it runs on the CPU with small shapes, and the page says that no GPU was there.
Exits 1 where a strategy fails or a float32 verdict differs.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import re
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from safetensors.torch import save_file

from glitchrun.checkpoint.headers import read_header
from glitchrun.checkpoint.resolve import resolve
from glitchrun.events import Batch, Token, Verified
from glitchrun.model import load
from glitchrun.model.loaded import LoadedModel
from glitchrun.plan.batch_sizes import PASSES_PER_WRITE
from glitchrun.plan.weight_bytes import weights
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.frozen_suffix import Screener
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Prompt
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import ModelSpec, Spec, Thresholds
from glitchrun.strategies.context import Context
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.token_features import row_norms

ORACLE = Path(__file__).parents[1] / "tests" / "data" / "oracle" / "nowllm-0829"
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
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
PREFIX, SUFFIX = 15, 16
"""Ids before and after the token in SmolLM2's repeat prompt, taken for the random models too."""
PROMPT = Prompt("repeat", tuple(range(5, 5 + PREFIX)), tuple(range(30, 30 + SUFFIX)), "", "")
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
SMALL = {"num_hidden_layers": 2, "hidden_size": 288, "intermediate_size": 768, "head_dim": 32}
MIXTRAL_22B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 15,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
REPEATS = 3


@dataclass
class Page:
    """Markdown as it comes about, and what went wrong."""

    lines: list[str]
    faults: list[str]

    def say(self, line: str = "") -> None:
        self.lines.append(line)
        click.echo(line)

    def table(self, head: Sequence[str]) -> None:
        self.say()
        self.say("| " + " | ".join(head) + " |")
        self.say("|" + "---|" * len(head))

    def row(self, *cells: object) -> None:
        self.say("| " + " | ".join(map(str, cells)) + " |")


# Part 1: every strategy ----------------------------------------------------------------------


def oracle(quantization: str, device: str) -> Context:
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
        vocabulary=Vocabulary(model.tokenizer, row_norms(model.input_embeddings)),
        template=detect(spec.template, model.tokenizer, model.config, spec.model.path),
        free_bytes=1 << 30,
        earlier={},
    )


def facts(context: Context, name: str, params: Mapping[str, Any]) -> list[Any]:
    """Everything that a strategy finds out."""
    strategy = STRATEGIES[name]
    events = strategy.run(strategy.configure(params), context, ())
    return [fact for event in events if isinstance(event, Batch) for fact in event.facts]


def verdicts(context: Context) -> dict[tuple[int, str], tuple[bool, int, int]]:
    """Passed, most likely token and rank of every token in scope under all three probes."""
    return {
        (fact.token.id, name): (result.passed, result.argmax, result.rank)
        for fact in facts(context, "scan", {"probes": "strict"})
        if isinstance(fact, Verified)
        for name, result in fact.probes.items()
    }


def run_strategies(page: Page) -> None:
    page.say("### Every strategy on the trained stand-in, and verdicts against the CPU's")
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
    page: Page, context: Context, quantization: str, name: str, params: Mapping[str, Any]
) -> bool:
    try:
        facts(context, name, params)
    except Exception:  # noqa: BLE001 - every fault belongs in the table, the others are still to run
        page.faults.append(f"{name} {params.get('search', '')} in {quantization} failed")
        traceback.print_exc()
        return False
    return True


# Part 2: speed -------------------------------------------------------------------------------


def random_llama(settings: Mapping[str, Any], dtype: torch.dtype) -> LoadedModel:
    """A LlamaForCausalLM of random weights, made on the device."""
    config = transformers.LlamaConfig(**settings, max_position_embeddings=2048)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with DEVICE, transformers.initialization.no_init_weights():
            module = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.03) if parameter.dim() > 1 else parameter.fill_(1)
    module = module.eval().requires_grad_(False)
    name = str(dtype).removeprefix("torch.")
    kind = type(module).__name__
    return LoadedModel(module, None, module.config, DEVICE, name, "none", 0.0, 0, {}, (), kind)


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of some work, after one round that warms up."""
    work()
    times = []
    for _ in range(repeats):
        _finish()
        start = time.perf_counter()
        work()
        _finish()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _finish() -> None:
    if GPU:
        torch.cuda.synchronize()


def bound(model: LoadedModel, rows: int) -> float:
    """Seconds that the model's own matrices take, multiplied one after another, and the head."""
    matrices = [w for name, w in model.module.named_parameters() if name.endswith("proj.weight")]
    kind = {"device": DEVICE, "dtype": matrices[0].dtype}
    x = {w.shape[1]: torch.randn(rows * (SUFFIX + 1), w.shape[1], **kind) for w in matrices}
    head = model.output_embeddings
    last = torch.randn(rows, head.shape[1], **kind)

    def products() -> None:
        for weight in matrices:
            torch.mm(x[weight.shape[1]], weight.t())
        torch.mm(last, head.t())

    return seconds(products)


def one_at_a_time(model: LoadedModel, ids: Sequence[int]) -> None:
    with torch.no_grad():
        for token_id in ids:
            prompt = torch.tensor([PROMPT.ids(token_id)], device=DEVICE)
            int(model.module(input_ids=prompt).logits[0, -1].argmax())


def sizes(model: LoadedModel) -> list[int]:
    """Rows to try: 64 and more, up to what a run would take by itself."""
    free = torch.cuda.mem_get_info()[0] if GPU else 1 << 30
    most = standard_rows(model, PREFIX + SUFFIX + 1, free)
    return sorted({rows for rows in (64, 512, 1024) if rows < most} | {most})


def verification(page: Page, name: str, model: LoadedModel) -> None:
    backend, why = best_backend(model)
    page.say()
    page.say(f"### {name}, {model.dtype}")
    page.say()
    page.say(f"{why}. A prompt has {PREFIX} ids before the token and {SUFFIX} after it.")
    page.table(("rows", "tokens/s", "of the bound", "generic backend", "peak memory"))
    few = list(range(100, 108))
    alone = len(few) / seconds(lambda: one_at_a_time(model, few), 2)
    page.row("one at a time", f"{alone:.1f}", "", "", "")
    for rows in sizes(model):
        ids = [
            index % model.vocab_size
            for index in range(100, 100 + PASSES_PER_WRITE[DEVICE.type] * rows)
        ]
        engine = Verifier(backend, {"repeat": PROMPT}, rows)
        generic = Verifier(Backend(model), {"repeat": PROMPT}, rows)
        least = bound(model, rows)
        _start_peak()
        took = seconds(lambda e=engine, i=ids: e.verify(i))
        peak = _peak()
        with _freed():
            some = ids[:rows]
            slow = seconds(lambda g=generic, i=some: g.verify(i), 1) if rows <= 512 else None
        page.row(
            f"{rows:,}",
            f"{len(ids) / took:,.0f}",
            f"{least * PASSES_PER_WRITE[DEVICE.type] / took:.0%}",
            "" if slow is None else f"{rows / slow:,.0f}",
            peak,
        )
    _screen(page, backend)
    _sampling(page, backend)


def _screen(page: Page, backend: Backend) -> None:
    free = torch.cuda.mem_get_info()[0] if GPU else 1 << 30
    screener = Screener(backend, PROMPT, range(100, 4000), 0, free)
    ids = [index % backend.model.vocab_size for index in range(4 * screener.rows)]
    took = seconds(lambda: screener.screen(ids), 1)
    page.row(f"screen, {screener.rows:,}", f"{len(ids) / took:,.0f}", "", "", "")


def _sampling(page: Page, backend: Backend) -> None:
    """Attempts of 16 new tokens each; `generate` draws as many for one prompt at a time.

    At 0.7 random weights leave tens of thousands of candidates in a nucleus. A temperature of 0.02
    makes their distributions as peaked as a trained model's.
    """
    tokens = [Token(i, f"token {i}", f"token{i}", "normal", 1.0) for i in range(200, 264)]
    sampler = Sampler(
        backend,
        {"repeat": PROMPT},
        params=SamplingParams(0.02, 0.9),
        max_new_tokens=16,
        rows=512,
        seed=0,
        decode=lambda ids: " ".join(map(str, ids)),
        stop_ids=frozenset(),
    )
    took = seconds(lambda: sampler.sample(tokens, 8), 1)
    ids = torch.tensor([PROMPT.ids(200)], device=DEVICE)
    alone = seconds(
        lambda: backend.model.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=0.02,
            top_p=0.9,
            top_k=0,
            max_new_tokens=16,
            eos_token_id=None,
            pad_token_id=0,
        ),
        1,
    )
    page.row(
        "sampling, attempts of 16 tokens",
        f"{8 * len(tokens) / took:,.0f} attempts/s ({1 / alone:.1f} with generate)",
        "",
        "",
        "",
    )


def _start_peak() -> None:
    if GPU:
        torch.cuda.reset_peak_memory_stats()


def _peak() -> str:
    return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if GPU else ""


@contextlib.contextmanager
def _freed() -> Iterator[None]:
    yield
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


def speed(page: Page, small: bool) -> None:
    for name, settings in (("SmolLM2-135M's shape", SMOLLM2), ("Llama 7B's shape", LLAMA_7B)):
        made = {**settings, **SMALL, "num_attention_heads": 9, "num_key_value_heads": 3}
        with _freed():
            verification(
                page,
                f"{name}, cut down" if small else name,
                random_llama(made if small else settings, torch.bfloat16),
            )


# Part 3: the memory table ----------------------------------------------------------------------


def write_mixtral(folder: Path, settings: Mapping[str, Any]) -> None:
    """A MixtralForCausalLM of random weights in bfloat16, a file for each layer."""
    config = transformers.MixtralConfig(**settings, architectures=["MixtralForCausalLM"])
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    for file in ORACLE.glob("*token*"):
        shutil.copy(file, folder)
    width, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * (width // config.num_attention_heads)
    index: dict[str, str] = {}

    def store(number: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        file = f"model-{number:05}.safetensors"
        tensors = {name: _random(shape) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))

    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        moe = f"{at}block_sparse_moe."
        shapes: dict[str, tuple[int, ...]] = {
            f"{at}self_attn.q_proj.weight": (width, width),
            f"{at}self_attn.k_proj.weight": (kv, width),
            f"{at}self_attn.v_proj.weight": (kv, width),
            f"{at}self_attn.o_proj.weight": (width, width),
            f"{at}input_layernorm.weight": (width,),
            f"{at}post_attention_layernorm.weight": (width,),
            f"{moe}gate.weight": (config.num_local_experts, width),
        }
        for expert in range(config.num_local_experts):
            shapes[f"{moe}experts.{expert}.w1.weight"] = (inner, width)
            shapes[f"{moe}experts.{expert}.w2.weight"] = (width, inner)
            shapes[f"{moe}experts.{expert}.w3.weight"] = (inner, width)
        store(layer, shapes)
    vocabulary = (config.vocab_size, width)
    store(
        config.num_hidden_layers,
        {
            "model.embed_tokens.weight": vocabulary,
            "lm_head.weight": vocabulary,
            "model.norm.weight": (width,),
        },
    )
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    made = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    return (made.fill_(1) if len(shape) == 1 else made.normal_(0, 0.03)).cpu()


def memory_table(page: Page, folder: Path, small: bool) -> None:
    settings = dict(MIXTRAL_22B)
    if small:
        settings |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    folder.mkdir(parents=True, exist_ok=True)
    write_mixtral(folder, settings)
    header = read_header(resolve(str(folder)))
    billions = (weights(header, "none").parameters or 0) / 1e9
    page.say()
    page.say(f"### A Mixtral of {billions:.1f} billion random weights")
    page.table(
        ("weights", "loading", "held", "planned", "peak while loading", "rows", "tokens/s", "peak")
    )
    for quantization in ("bfloat16", "int8", "int4"):
        with _freed():
            _load_and_verify(page, folder, quantization, weights(header, quantization).total)


def _load_and_verify(page: Page, folder: Path, quantization: str, planned: int) -> None:
    model = load(ModelSpec(str(folder), quantization=quantization), folder / "cache")
    free = torch.cuda.mem_get_info()[0] if GPU else 1 << 30
    rows = standard_rows(model, PREFIX + SUFFIX + 1, free)
    verifier = Verifier(best_backend(model)[0], {"repeat": PROMPT}, rows)
    ids = list(range(100, 100 + rows))
    _start_peak()
    took = seconds(lambda: verifier.verify(ids), 1)
    page.row(
        quantization,
        f"{model.load_seconds:.0f} s",
        f"{model.bytes / 1e9:.2f} GB",
        f"{planned / 1e9:.2f} GB ({planned / model.bytes - 1:+.1%})",
        f"{model.peak_bytes / 1e9:.2f} GB",
        rows,
        f"{rows / took:,.0f}",
        _peak(),
    )


# The page --------------------------------------------------------------------------------------


def heading() -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    return f"## {today}, {torch.cuda.get_device_name() if GPU else 'no GPU: not run on one'}"


def versions() -> str:
    try:
        import bitsandbytes

        quantizer = bitsandbytes.__version__
    except ImportError:
        quantizer = "not installed"
    tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, bitsandbytes "
        f"{quantizer}, TF32 {tf32}."
    )


def put(page: Path, lines: Sequence[str]) -> None:
    """Replaces the page's section of the same heading, or puts this one before all others."""
    text = page.read_text(encoding="utf-8") if page.exists() else "# On a GPU\n"
    section = "\n".join(lines).strip() + "\n"
    title, *others = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    others = [other.strip() + "\n" for other in others if not other.startswith(lines[0] + "\n")]
    page.write_text("\n".join([title.strip() + "\n", section, *others]), encoding="utf-8")


@click.command()
@click.option("--write", type=click.Path(path_type=Path), help="A page to put the tables into.")
@click.option(
    "--memory-table",
    "folder",
    type=click.Path(path_type=Path),
    help="A folder with 45 GB of room.",
)
@click.option("--small", is_flag=True, help="Cut-down shapes; always without a GPU.")
def main(write: Path | None, folder: Path | None, small: bool) -> None:
    small = small or not GPU
    page = Page([], [])
    page.say(heading())
    page.say()
    page.say(versions())
    page.say()
    run_strategies(page)
    speed(page, small)
    if folder is not None:
        memory_table(page, folder, small)
    if write is not None:
        put(write, page.lines)
    if page.faults:
        raise SystemExit("\n".join(page.faults))


if __name__ == "__main__":
    main()
