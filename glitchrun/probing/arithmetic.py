"""Chooses the arithmetic of a model's matrix products on a CPU, by timing them.

Which number format is fastest is a property of the machine: on one CPU with AVX512_BF16, bfloat16
products ran at twice the rate of float32 products, on another at half of it, and with matrix units
(AMX) at ten times the rate. So the products of the model's own shapes are timed in each format,
once per machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glitchrun.checkpoint.cache_folder import cache_folder
from glitchrun.probing.fast.llama_layout import ExpertsLayout, LlamaLayout, MlpLayout

Seconds = Mapping[str, float]
"""For each of `float32`, `bfloat16` and `int8`, the time of all products of one pass."""

_ROWS = 1024
"""Rows of the timed products: 64 prompts of 17 positions, or 512 of a screen's two."""
_OPERATIONS = 1 << 32
"""Floating-point operations of a timed product at most; larger ones get fewer rows and columns."""
_SMALL = 1 << 24
"""Weights below which a model is not measured: a pass takes milliseconds in any format."""
_RECHECKED = 0.15
"""Share of verifications that narrow arithmetic repeats in float32: 12 % on SmolLM2."""
_CLEARLY = 0.9
"""A format is chosen instead of float32 if it takes at most this share of the time."""
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """In which formats a model is run."""

    passes: torch.dtype
    """The dtype of passes whose results are facts. Near-ties are re-evaluated in float32."""
    screen: str
    """The format of a screen's products: `float32`, `bfloat16` or `int8`; or the dtype of
    `passes`."""
    why: str
    """One sentence."""


def choose(
    layout: LlamaLayout,
    compute_dtype: torch.dtype,
    device: torch.device,
    setting: str = "auto",
    *,
    quantized: bool = False,
) -> Arithmetic:
    """Returns the arithmetic of a model of the Llama layout, the same for a streamed one.

    On a CPU, a mixture of experts is run in float32. In bfloat16, rounding gives some positions
    other experts, which moves logits further than the margin of near-ties: by up to 36 % of the
    largest on a random Mixtral, where 2 of 1,000 verdicts were wrong.

    Args:
        layout: The model; its weights may be elsewhere.
        compute_dtype: The dtype of the model's activations.
        device: Where passes run.
        setting: `execution.arithmetic`: `auto`, `float32` or `weights` (their own dtype).
        quantized: Whether the weights are int8 or int4, which the layout of a streamed model does
            not show.
    """
    own = str(compute_dtype).removeprefix("torch.")
    if setting == "float32":
        return Arithmetic(torch.float32, "float32", "float32, as the spec asks")
    if device.type != "cpu":
        return Arithmetic(compute_dtype, own, f"{own}, the dtype of the weights")
    shapes = matrix_shapes(layout)
    if reason := _why_unmeasured(layout, shapes, quantized):
        if setting == "weights":
            return Arithmetic(compute_dtype, own, f"{own}, as the spec asks")
        return Arithmetic(torch.float32, "float32", f"float32, because {reason}")
    found = by_seconds(measured(shapes), compute_dtype, convertible=is_dense(layout))
    if setting == "weights":
        return replace(found, passes=compute_dtype, why=f"{own}, as the spec asks; {found.why}")
    return found


def _why_unmeasured(
    layout: LlamaLayout, shapes: Mapping[tuple[int, int], int], quantized: bool
) -> str:
    """Why a model is run in float32 without a measurement; empty if it is measured."""
    if any(isinstance(layer.mlp, ExpertsLayout) for layer in layout.layers):
        return "rounding to fewer digits would change the experts of some positions"
    if quantized or not all(isinstance(linear, nn.Linear) for linear in _linears(layout)):
        return "int8 and int4 weights are widened for each product anyway"
    is_small = sum(rows * columns * n for (rows, columns), n in shapes.items()) < _SMALL
    return "the model is small" if is_small else ""


def by_seconds(seconds: Seconds, compute_dtype: torch.dtype, convertible: bool) -> Arithmetic:
    """Returns the arithmetic to use where products take a given time.

    Args:
        seconds: The time of the products of one pass in each format.
        compute_dtype: The dtype of the model's activations. Facts are computed in it or in
            float32.
        convertible: Whether the weights can be converted for a screen.
    """
    own, wide = str(compute_dtype).removeprefix("torch."), seconds["float32"]
    narrow = seconds.get(own, float("inf")) + _RECHECKED * wide
    passes = compute_dtype if own != "float32" and narrow < _CLEARLY * wide else torch.float32
    screen = str(passes).removeprefix("torch.")
    if convertible:
        fastest = min(seconds, key=lambda name: seconds[name])
        if seconds[fastest] < _CLEARLY * seconds.get(screen, wide):
            screen = fastest
    rates = ", ".join(
        f"{name} {wide / taken:.1f}" for name, taken in seconds.items() if name != "float32"
    )
    chosen = str(passes).removeprefix("torch.")
    return Arithmetic(
        passes,
        screen,
        f"products in {chosen}, those of a screen in {screen}; measured here, times the rate of "
        f"float32: {rates}",
    )


# The model's matrices -------------------------------------------------------------------------


def matrix_shapes(layout: LlamaLayout) -> Counter[tuple[int, int]]:
    """Returns how often each shape `(R, K)` is multiplied with in a pass, without the head."""
    return Counter(shape for linear in _linears(layout) if (shape := _shape(linear)))


def is_dense(layout: LlamaLayout) -> bool:
    """Returns whether every matrix of a pass is a plain linear layer without bias."""
    return all(
        isinstance(linear, nn.Linear) and linear.bias is None
        for linear in (*_linears(layout), layout.head)
    ) and all(isinstance(layer.mlp, MlpLayout) for layer in layout.layers)


def _linears(layout: LlamaLayout) -> Iterator[Any]:
    for layer in layout.layers:
        attention, mlp = layer.attention, layer.mlp
        yield from (attention.q, attention.k, attention.v, attention.o)
        if isinstance(mlp, MlpLayout):
            yield from (mlp.gate, mlp.up, mlp.down)


def _shape(linear: Any) -> tuple[int, int] | None:
    rows, columns = (getattr(linear, name, None) for name in ("out_features", "in_features"))
    return (int(rows), int(columns)) if rows and columns else None


# Timing ---------------------------------------------------------------------------------------


def measured(shapes: Mapping[tuple[int, int], int]) -> Seconds:
    """Returns the time of a pass's products in each format, from the cache folder if it is there.

    The file names the CPU, its capabilities, torch's version and the number of threads.
    """
    machine = {
        "cpu": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "shapes": sorted([*shape, n] for shape, n in shapes.items()),
    }
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_folder() / "arithmetic" / f"{digest}.json"
    try:
        seconds = json.loads(file.read_text(encoding="utf-8"))["seconds"]
        return {name: float(seconds[name]) for name in ("float32", "bfloat16", "int8")}
    except (OSError, ValueError, KeyError, TypeError):
        seconds = time_products(shapes)
    _store(file, {"seconds": seconds, "machine": machine})
    return seconds


def _store(file: Path, content: Mapping[str, Any]) -> None:
    part = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")
        part.replace(file)
    except OSError:  # a cache that cannot be written is measured again
        part.unlink(missing_ok=True)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@torch.no_grad()
def time_products(shapes: Mapping[tuple[int, int], int]) -> dict[str, float]:
    """Times products of weights of given shapes `(R, K)` in each format; takes a second or two."""
    total = dict.fromkeys(("float32", "bfloat16", "int8"), 0.0)
    for (full, columns), times in shapes.items():
        rows = min(full, max(256, _OPERATIONS // (2 * _ROWS * columns)))
        steps = max(64, min(_ROWS, _OPERATIONS // (2 * rows * columns)))
        scale = times * full / rows * _ROWS / steps
        for name, product in _products(steps, rows, columns).items():
            total[name] += scale * _fastest(product)
    return total


def _products(steps: int, rows: int, columns: int) -> dict[str, Callable[[], object]]:
    x, weight = torch.randn(steps, columns), torch.randn(rows, columns)
    out, narrow, narrow_x = torch.empty(steps, rows), weight.bfloat16(), x.bfloat16()
    coarse = Int8Linear(weight, Int8Rows())
    return {
        "float32": lambda: torch.mm(x, weight.t(), out=out),
        "bfloat16": lambda: torch.mm(narrow_x, narrow.t()),
        "int8": lambda: coarse(x.add_(0)),  # the quantization of x counts
    }


def _fastest(product: Callable[[], object], rounds: int = 4) -> float:
    seconds = []
    for _ in range(rounds + 1):  # the first one warms up
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


# A screen's own weights -----------------------------------------------------------------------


class Int8Rows:
    """Rows of activations in int8, each with its own scale, and scratch memory of products.

    The last rows are remembered, because several matrices are multiplied with the same.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, int] | None = None
        self._found: tuple[Tensor, Tensor]
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x `(N, K)` in int8, and the scale of each row, `(N, 1)`."""
        version = int(x._version)  # rises with every change in place
        if self._last is None or self._last[0] is not x or self._last[1] != version:
            wide = torch.abs(x, out=self.scratch(torch.float32, *x.shape))
            scale = wide.amax(dim=1, keepdim=True).div_(127).clamp_(min=1e-12)
            torch.div(x, scale, out=wide).round_()
            self._found = self.scratch(torch.int8, *x.shape).copy_(wide), scale
            self._last = x, version
        return self._found

    def scratch(self, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
        """Returns a tensor `(rows, columns)` that the next one of its kind overwrites.

        Fresh memory costs as much as the elementwise operation that fills it.
        """
        key = (dtype, rows, columns)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(rows, columns, dtype=dtype)
        return self._buffers[key]


class Int8Linear:
    """A linear layer whose weights are int8 with a scale for each row, and whose products are exact
    sums of int8 products."""

    def __init__(self, weight: Tensor, rows: Int8Rows) -> None:
        wide = weight.float()  # (R, K)
        scale = wide.abs().amax(dim=1, keepdim=True).div_(127).clamp_(min=1e-12)
        self._weight = (wide / scale).round_().to(torch.int8)
        self._scale = scale[:, 0]
        self._rows = rows

    def __call__(self, x: Tensor) -> Tensor:
        """Returns `(N, R)` in float32 for x `(N, K)` in float32."""
        quantized, scale = self._rows.of(x)
        sums = self._rows.scratch(torch.int32, len(x), len(self._weight))
        torch._int_mm(quantized, self._weight.t(), out=sums)
        return torch.empty(sums.shape).copy_(sums).mul_(scale).mul_(self._scale)


def converted(layout: LlamaLayout, format_: str) -> LlamaLayout:
    """Returns a dense layout whose matrices are copies in `int8` or `bfloat16`.

    Embedding and norms stay the model's own, and so does the head of an `int8` copy: with a rounded
    head, 95 % of SmolLM2's severe tokens took a fifth more verifications; without it, none more.
    """
    rows = Int8Rows()

    def copy(linear: Any) -> Any:
        if format_ == "int8":
            return Int8Linear(linear.weight, rows)
        narrow = nn.Linear(1, 1, bias=False, device="meta")
        narrow.weight = nn.Parameter(linear.weight.bfloat16(), requires_grad=False)
        return narrow

    def all_of(part: Any, names: Sequence[str]) -> Any:
        return replace(part, **{name: copy(getattr(part, name)) for name in names})

    layers = tuple(
        replace(
            layer,
            attention=all_of(layer.attention, "qkvo"),
            mlp=all_of(layer.mlp, ("gate", "up", "down")),
        )
        for layer in layout.layers
    )
    head = layout.head if format_ == "int8" else copy(layout.head)
    return replace(layout, layers=layers, head=head)
