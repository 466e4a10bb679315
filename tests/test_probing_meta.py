"""The engine's tensor paths on torch's `meta` device, which stands for a GPU.

A tensor that is made on the CPU by mistake costs a transfer there, and a value that is read makes
the CPU wait. On `meta` reading a value raises, and `Elsewhere` records tensors of other devices.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glitchrun.model import load
from glitchrun.probing.fast.buffers import Workspace, empty_cache
from glitchrun.probing.fast.forward import cached_logits, embed, head_logits
from glitchrun.probing.fast.frozen import FrozenCache, freeze_cache, frozen_suffix_logits
from glitchrun.probing.fast.layers import add_mlp
from glitchrun.probing.fast.llama_layout import ExpertsLayout, LlamaLayout, recognize
from glitchrun.probing.logit_statistics import measure
from glitchrun.probing.streamed_rows import Growing, Mixture, Rows, ScreenedRows, Suffixes, Texts
from glitchrun.spec.types import ModelSpec
from tests.support import tiny_models

META = torch.device("meta")
_MOVES = ("aten::_to_copy", "aten::copy_")


class Elsewhere(TorchDispatchMode):
    """Records operations on tensors of other devices, except numbers and transfers to `meta`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = out if func.name().partition(".")[0] in _MOVES else (args, kwargs, out)
        tensors = [one for one in tree_leaves(taken) if isinstance(one, Tensor)]
        if any(one.device != META and one.dim() for one in tensors):
            self.found.append(func.name())
        return out


def layout_of(build: Callable[..., Path], folder: Path) -> LlamaLayout:
    module = load(ModelSpec(str(build(folder / "model")))).module
    return recognize(module.to(META), empty=True)


@pytest.mark.parametrize(
    "build", [tiny_models.tiny_llama, tiny_models.tiny_qwen, tiny_models.tiny_gemma]
)
def test_passes_stay_on_the_device(build: Callable[..., Path], tmp_path: Path) -> None:
    layout, ids = layout_of(build, tmp_path), torch.empty(8, 5, dtype=torch.long, device=META)
    with Elsewhere() as elsewhere, torch.no_grad():
        workspace = Workspace(torch.bfloat16, META)
        cache = empty_cache(layout, workspace.dtype, META)
        cached_logits(layout, ids[:1], cache, workspace)  # the prefix
        rows = cache.repeat(8)
        logits = cached_logits(layout, ids, rows, workspace)
        assert logits.shape == (8, len(layout.embedding))
        assert measure(logits.float(), ids[:, 0]).p.shape == (8,)
        rows = rows.select(torch.empty(6, dtype=torch.long, device=META))
        cached_logits(layout, ids[:6, :1], rows, workspace)  # a sampled position
        frozen = freeze_cache(rows, 5, 3)
        screened = frozen_suffix_logits(layout, frozen, ids[:, 0], workspace)
        assert screened.shape == (8, len(layout.embedding))
    assert elsewhere.found == []


@pytest.mark.parametrize("build", [tiny_models.tiny_llama, tiny_models.tiny_mixtral])
def test_streamed_passes_stay_on_the_device(build: Callable[..., Path], tmp_path: Path) -> None:
    layout, ids = layout_of(build, tmp_path), torch.zeros(70, 5, dtype=torch.long)
    attention = layout.layers[0].attention
    shape = (attention.num_kv_heads, 7, attention.head_dim)
    pairs = [(torch.empty(shape, device=META),) * 2 for _ in layout.layers]
    workspace = Workspace(torch.float32, META)
    cache = empty_cache(layout, torch.float32, META).repeat(70)

    def through_layers(rows: Rows) -> Tensor:
        for number, layer in enumerate(layout.layers):
            rows.attend(layer, number, number == len(layout.layers) - 1, workspace)
            if isinstance(layer.mlp, ExpertsLayout):  # which positions an expert gets is read
                Mixture(layer, layer.mlp, rows.streams, workspace)
                continue
            for stream in rows.streams:
                add_mlp(layer, stream, workspace)
        return head_logits(layout, rows.last(), workspace)

    frozen = FrozenCache(3, 2, pairs)
    kinds = (
        Suffixes([1, 2], ids, 64),
        Suffixes((), ids, 1),
        ScreenedRows(frozen, ids[:, 0]),
        Growing(ids, cache),
        Texts([*[([1, 2, 3], 1)] * 66, ([4], 1), ([1, 2, 3, 4, 5], 3)]),
    )
    for rows in kinds:
        rows.begin(lambda some: embed(layout, some.to(META), workspace), layout, workspace)
        with Elsewhere() as elsewhere, torch.no_grad():
            assert through_layers(rows).shape == (70, len(layout.embedding))
        assert elsewhere.found == []


def test_tensors_of_the_cpu_are_noticed() -> None:
    with Elsewhere() as elsewhere:
        torch.empty(3, device=META) * 2.0
        torch.arange(3)
    assert elsewhere.found == ["aten::arange"]
    with pytest.raises(RuntimeError, match="meta"):
        bool(torch.ones(3, device=META).all())
