"""The pass for GPUs, with its three Triton kernels replaced by plain torch operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glitchrun.probing.fast.layers import attention_mask, rotate
from glitchrun.probing.fast_backend import FastBackend
from glitchrun.probing.logit_statistics import measure
from glitchrun.probing.verifier import Verifier
from glitchrun.prompts.render import Prompt
from tests.support import tiny_models
from tests.support.engine import context

PROMPT = Prompt("repeat", (7, 8, 9), (3, 4, 5, 6), "", "")


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: tuple[Tensor, Tensor],
    rotation: tuple[Tensor, Tensor],
    scale: float,
    window: int | None,
    out: Tensor,
) -> Tensor:
    """`triton_kernels.attend`, written from its docstring."""
    num_kv_heads, length, head_dim = prefix[0].shape
    steps = len(rotation[0])
    rows = len(keys) // steps
    querying = len(queries) // rows

    def heads(x: Tensor, positions: int) -> Tensor:
        return x.view(rows, positions, -1, head_dim)

    def rotated(x: Tensor, positions: int) -> Tensor:
        last = (rotation[0][-positions:], rotation[1][-positions:])
        return rotate(heads(x, positions), last, torch.empty_like(heads(x, positions)))

    known = [part.expand(rows, num_kv_heads, length, head_dim) for part in prefix]
    own = rotated(keys, steps).transpose(1, 2), heads(values, steps).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(
        rotated(queries, querying).transpose(1, 2),
        torch.cat([known[0], own[0]], dim=2),
        torch.cat([known[1], own[1]], dim=2),
        attn_mask=attention_mask(querying, length + steps, window, keys.device),
        scale=scale,
        enable_gqa=True,
    )
    return out.copy_(mixed.transpose(1, 2).reshape(out.shape))


def row_statistics(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`triton_kernels.row_statistics`, written from its docstring."""
    found = measure(logits, targets)
    own = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(dim=1)
    return {
        "p": found.p,
        "rank": found.rank.int(),
        "entropy": found.entropy,
        "argmax": found.argmax.int(),
        "best": logits.amax(dim=1),
        "own": own,
        "other": others,
    }


KERNELS: Any = SimpleNamespace(
    attend=attend, gated=lambda gate, up: F.silu(gate) * up, row_statistics=row_statistics
)


def on_a_gpu(folder: Path) -> FastBackend:
    backend = context(folder).backend
    assert isinstance(backend, FastBackend)
    backend._kernels = KERNELS
    backend._workspaces.clear()  # the ones created at load have no kernels
    return backend


@pytest.mark.parametrize("prefix", [[7, 8, 9], []])
@pytest.mark.parametrize(
    "build", [tiny_models.tiny_llama, tiny_models.tiny_qwen, tiny_models.tiny_mixtral]
)
def test_logits_behind_a_shared_prefix_equal_those_of_whole_prompts(
    build: Callable[[Path], Path], prefix: list[int], tmp_path: Path
) -> None:
    backend = on_a_gpu(build(tmp_path / "model"))
    suffixes = torch.tensor([[10 + row, 3, 4, 5, 6] for row in range(4)])
    found = backend.last_logits(prefix, suffixes)
    for row, suffix in zip(found, suffixes, strict=True):
        whole = backend.logits_alone([*prefix, *suffix.tolist()])
        assert torch.allclose(row, whole, rtol=0, atol=2e-5 * float(whole.abs().max()))


def test_verdicts_equal_those_of_the_cpu_pass(llama_folder: Path) -> None:
    ids = list(range(4, 200, 7))
    expected = Verifier(context(llama_folder).backend, {"repeat": PROMPT}, rows=8).verify(ids)
    found = Verifier(on_a_gpu(llama_folder), {"repeat": PROMPT}, rows=8).verify(ids)
    for mine, theirs in zip(found, expected, strict=True):
        a, b = mine["repeat"], theirs["repeat"]
        assert (a.passed, a.argmax, a.rank) == (b.passed, b.argmax, b.rank)
        assert a.p == pytest.approx(b.p, rel=1e-4)
        assert (a.entropy, a.gap) == pytest.approx((b.entropy, b.gap), abs=1e-4)
