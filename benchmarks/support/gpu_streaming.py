"""A Mixtral that is read layer by layer, beside the same one in the GPU's memory."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.support.gpu_memory import MIXTRAL_22B, write_mixtral
from benchmarks.support.gpu_speed import (
    DEVICE,
    PREFIX,
    PROMPT,
    SUFFIX,
    freed,
    peak,
    reset_peak,
)
from benchmarks.support.page import MarkdownPage
from glitchrun.checkpoint.headers import read_header
from glitchrun.checkpoint.resolve import resolve
from glitchrun.checkpoint.stream_units import stream_units
from glitchrun.model import load
from glitchrun.model.loaded import LoadedModel
from glitchrun.model.streamed import load_streamed
from glitchrun.plan.streaming import stream_plan
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.verifier import Verifier
from glitchrun.spec.types import ModelSpec

LIMIT = 4 << 30
"""Bytes of the device that the streamed model may take."""


def measure_streaming(page: MarkdownPage, small: bool) -> None:
    """Adds a table of verification with all weights on the device, and with those of a layer."""
    settings = MIXTRAL_22B | {"num_hidden_layers": 4}
    if small:
        settings |= {"hidden_size": 256, "intermediate_size": 512}
    tokens = 200 if small else 8192
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mixtral(folder, settings)
        header = read_header(resolve(name))
        units = stream_units(header)
        plan = stream_plan(
            header,
            "none",
            units,
            DEVICE.type,
            free=None if small else LIMIT,
            positions=(PREFIX, SUFFIX + 1),
            tokens=(tokens, 0),
        )
        page.add()
        page.add(f"### A Mixtral of {units.pass_bytes / 1e9:.1f} GB, streamed")
        page.table(("residency", "tokens/s", "peak", "planned", "read", "planned", "other verdict"))
        with freed():
            model = load(ModelSpec(name, device=DEVICE.type), folder / "cache")
            expected = _verify(page, model, tokens, ("", ""), None)
            del model
        with freed():
            streamed = load_streamed(ModelSpec(name, device=DEVICE.type), plan)
            passes = -(-tokens // plan.verify_tokens)
            needed = f"{plan.total_bytes / 1e9:.2f} GB"
            read = f"{passes * plan.pass_bytes / 1e9:.2f} GB"
            found = _verify(page, streamed, tokens, (needed, read), expected)
    if any(one[0] != other[0] for one, other in zip(found, expected, strict=True)):
        page.faults.append("verdicts of the streamed model differ from the resident one's")


def _verify(
    page: MarkdownPage,
    model: LoadedModel,
    tokens: int,
    planned: tuple[str, str],
    expected: list[Any] | None,
) -> list[Any]:
    """Adds a row; returns passed and the most likely token of each token."""
    backend = best_backend(model)[0]
    verifier = Verifier(backend, {"repeat": PROMPT}, backend.pass_rows or min(tokens, 512))
    verifier.verify([99])  # warms up
    reset_peak()
    before, start = model.bytes_read[0], time.perf_counter()
    found = verifier.verify(list(range(100, 100 + tokens)))  # results are on the CPU then
    took = time.perf_counter() - start
    results = [(one["repeat"].passed, one["repeat"].argmax) for one in found]
    differs = (
        ""
        if expected is None
        else sum(one[0] != other[0] for one, other in zip(results, expected, strict=True))
    )
    read = f"{(model.bytes_read[0] - before) / 1e9:.2f} GB" if expected is not None else ""
    page.row(
        model.residency, f"{tokens / took:,.1f}", peak(), planned[0], read, planned[1], differs
    )
    return results
