"""Speed of verification, screening and sampling on random models with true shapes."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from benchmarks.support.page import MarkdownPage
from glitchrun.events import Token
from glitchrun.model.loaded import LoadedModel
from glitchrun.plan.passes import PASSES_PER_WRITE
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.frozen_suffix import Screener
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.render import Prompt

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
PREFIX, SUFFIX = 15, 16
"""Ids before and after the token in SmolLM2's repeat prompt; the random models use the same."""
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
REPEATS = 3


def random_llama(settings: Mapping[str, Any], dtype: torch.dtype) -> LoadedModel:
    """Returns a LlamaForCausalLM of random weights, created on the device."""
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
    """Returns the median time of some work, after a warm-up round."""
    work()
    times = []
    for _ in range(repeats):
        _synchronize()
        start = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def hardware_bound(model: LoadedModel, rows: int) -> float:
    """Returns the seconds of the products with all matrices of the model and the head, alone."""
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
    """The reference: one forward pass over one whole prompt per token."""
    with torch.no_grad():
        for token_id in ids:
            prompt = torch.tensor([PROMPT.ids(token_id)], device=DEVICE)
            int(model.module(input_ids=prompt).logits[0, -1].argmax())


def batch_sizes(model: LoadedModel) -> list[int]:
    """Returns the rows to try: from 64 up to the rows that a run takes by default."""
    free = free_bytes()
    most = standard_rows(model, PREFIX + SUFFIX + 1, free)
    return sorted({rows for rows in (64, 512, 1024) if rows < most} | {most})


def measure_model(page: MarkdownPage, name: str, model: LoadedModel) -> None:
    """Adds a table of verification, screening and sampling with one model."""
    backend, why = best_backend(model)
    page.add()
    page.add(f"### {name}, {model.dtype}")
    page.add()
    page.add(f"{why}. A prompt has {PREFIX} ids before the token and {SUFFIX} after it.")
    page.table(("rows", "tokens/s", "of the bound", "generic backend", "peak memory"))
    few = list(range(100, 108))
    alone = len(few) / seconds(lambda: one_at_a_time(model, few), 2)
    page.row("one at a time", f"{alone:.1f}", "", "", "")
    for rows in batch_sizes(model):
        ids = [
            index % model.vocab_size
            for index in range(100, 100 + PASSES_PER_WRITE[DEVICE.type] * rows)
        ]
        engine = Verifier(backend, {"repeat": PROMPT}, rows)
        generic = Verifier(Backend(model), {"repeat": PROMPT}, rows)
        bound = hardware_bound(model, rows)
        reset_peak()
        took = seconds(lambda e=engine, i=ids: e.verify(i))
        most_memory = peak()
        with freed():
            some = ids[:rows]
            slow = seconds(lambda g=generic, i=some: g.verify(i), 1) if rows <= 512 else None
        page.row(
            f"{rows:,}",
            f"{len(ids) / took:,.0f}",
            f"{bound * PASSES_PER_WRITE[DEVICE.type] / took:.0%}",
            "" if slow is None else f"{rows / slow:,.0f}",
            most_memory,
        )
    _screen(page, backend)
    _sampling(page, backend)


def _screen(page: MarkdownPage, backend: Backend) -> None:
    free = free_bytes()
    screener = Screener(backend, PROMPT, range(100, 4000), 0, free)
    ids = [index % backend.model.vocab_size for index in range(4 * screener.rows)]
    took = seconds(lambda: screener.screen(ids), 1)
    page.row(f"screen, {screener.rows:,}", f"{len(ids) / took:,.0f}", "", "", "")


def _sampling(page: MarkdownPage, backend: Backend) -> None:
    """Attempts of 16 new tokens each; `generate` samples as many for one prompt at a time.

    At temperature 0.7, a nucleus of a model with random weights has tens of thousands of
    candidates. A temperature of 0.02 makes the distributions as peaked as a trained model's.
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


def free_bytes() -> int:
    """Returns the free memory of the device; 1 GiB on a CPU."""
    return int(torch.cuda.mem_get_info()[0]) if GPU else 1 << 30


def reset_peak() -> None:
    """Starts a new measurement of the peak memory."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()


def peak() -> str:
    """Returns the peak memory since `reset_peak`; empty on a CPU."""
    return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if GPU else ""


@contextlib.contextmanager
def freed() -> Iterator[None]:
    """Frees the device's memory after the block."""
    yield
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


def measure_speed(page: MarkdownPage, small: bool) -> None:
    """Adds a table for each shape; `small` cuts the shapes down."""
    for name, settings in (("SmolLM2-135M's shape", SMOLLM2), ("Llama 7B's shape", LLAMA_7B)):
        cut_down = {**settings, **SMALL, "num_attention_heads": 9, "num_key_value_heads": 3}
        with freed():
            measure_model(
                page,
                f"{name}, cut down" if small else name,
                random_llama(cut_down if small else settings, torch.bfloat16),
            )
