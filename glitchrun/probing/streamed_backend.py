"""The backend of streamed models: every token of a pass goes through a layer before the next one.

A pass reads the weights once:

1. the embedding, of which the rows of the pass are kept;
2. each layer: attention chunk by chunk after the layer's own keys and values of the prefix, then
   the MLP, or each expert on the positions that are routed to it;
3. the head, for the last position of each row. Each group of logits is consumed at once.

What is kept between layers is the residual stream of the pass's positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from glitchrun.errors import PreflightError, RunError
from glitchrun.model.streamed import StreamedModel, filled
from glitchrun.plan.passes import CHUNK_ROWS, LOGIT_BYTES
from glitchrun.plan.weight_bytes import QUANTIZED
from glitchrun.probing.arithmetic import choose
from glitchrun.probing.backend import Backend
from glitchrun.probing.fast.buffers import KVCache, Workspace, empty_cache
from glitchrun.probing.fast.forward import embed, head_logits
from glitchrun.probing.fast.frozen import FrozenCache
from glitchrun.probing.fast.layers import add_mlp
from glitchrun.probing.fast.llama_layout import (
    ExpertsLayout,
    OtherLayoutError,
    linear,
    recognize,
    recognize_layer,
)
from glitchrun.probing.fast_backend import FastBackend
from glitchrun.probing.logit_statistics import Statistics, check_finite, measure, scores
from glitchrun.probing.model_call import CacheMode
from glitchrun.probing.streamed_rows import (
    MLP_ROWS,
    Growing,
    Mixture,
    Rows,
    ScreenedRows,
    Suffixes,
    Texts,
)

Consume = Callable[[int, Tensor], None]
"""Takes the first row of a group, and its logits `(G, V)` in the arithmetic of the pass."""


class StreamedBackend(Backend):
    """Runs a `StreamedModel`; `trial` is the fast backend of its small stand-in."""

    def __init__(self, model: StreamedModel, trial: FastBackend, arithmetic: str) -> None:
        self.model: StreamedModel = model
        self.device = model.device
        self.cache_mode = CacheMode.FULL
        self._trial = trial
        self._layout = recognize(model.module, empty=True)
        self.chosen = choose(
            self._layout,
            model.compute_dtype,
            model.device,
            arithmetic,
            quantized=model.is_prequantized or model.quantization in QUANTIZED,
        )

    @property
    def trial(self) -> FastBackend:
        return self._trial

    @property
    def arithmetic(self) -> torch.dtype:
        return self.chosen.passes

    @property
    def pass_rows(self) -> int | None:
        return self.model.plan.verify_tokens

    @property
    def batch_passes(self) -> int:
        return 1 if self.arithmetic == torch.float32 else self.model.plan.batch_passes

    @property
    def answer_rows(self) -> int | None:
        return self.model.plan.answer_tokens

    @property
    def screen_rows(self) -> int | None:
        return self.model.plan.screen_tokens

    # Verification -----------------------------------------------------------------------------

    @torch.no_grad()
    def last_logits(
        self, prefix: Sequence[int], suffixes: Tensor, *, float32: bool = False
    ) -> Tensor:
        return self._logits(Suffixes(prefix, suffixes, CHUNK_ROWS), float32)

    @torch.no_grad()
    def logits_alone(self, ids: Sequence[int], *, float32: bool = False) -> Tensor:
        return self._logits(Suffixes((), torch.tensor([list(ids)]), 1), float32)[0]

    @torch.no_grad()
    def statistics(
        self,
        prefix: Sequence[int],
        suffixes: Tensor,
        targets: Tensor,
        *,
        float32: bool = False,
    ) -> Statistics:
        rows = suffixes[: len(targets)]
        return self._statistics(Suffixes(prefix, rows, CHUNK_ROWS), targets, float32)

    @torch.no_grad()
    def logits_each(self, prefix: Sequence[int], suffixes: Tensor) -> Tensor:
        return self._logits(Suffixes(prefix, suffixes, 1), False)

    @torch.no_grad()
    def statistics_alone(self, prompts: Tensor, targets: Tensor) -> Statistics:
        return self._statistics(Suffixes((), prompts, 1), targets, float32=True)

    @torch.no_grad()
    def read_texts(
        self, texts: Sequence[tuple[Sequence[int], int]], read: Callable[[int, int, Tensor], None]
    ) -> None:
        rows = Texts(texts)

        def consume(start: int, logits: Tensor) -> None:
            found = check_finite(logits.float())
            places = rows.places[start : start + len(found)]
            for (place, at), one in zip(places, found, strict=True):
                read(place, at, one)

        self._run(rows, False, consume)

    def _statistics(self, rows: Suffixes, targets: Tensor, float32: bool) -> Statistics:
        parts: list[Statistics] = []

        def consume(start: int, logits: Tensor) -> None:
            parts.append(measure(logits.float(), targets[start : start + len(logits)]))

        self._run(rows, float32, consume)
        columns = ([getattr(part, one.name) for part in parts] for one in fields(Statistics))
        return Statistics(*(torch.cat(column) for column in columns))

    def _logits(self, rows: Rows, float32: bool) -> Tensor:
        parts: list[Tensor] = []
        self._run(rows, float32, lambda _, logits: parts.append(logits.float()))
        return check_finite(torch.cat(parts))

    # Sampling: keys and values of all layers --------------------------------------------------

    @torch.no_grad()
    def start(self, prefix: Sequence[int], rows: int, *, float32: bool = False) -> KVCache:
        dtype = torch.float32 if float32 else self.arithmetic
        cache = empty_cache(self._layout, dtype, self.device)
        if prefix:
            self._run(Growing(torch.tensor([list(prefix)]), cache), float32, None)
        return cache.repeat(rows)

    @torch.no_grad()
    def step(self, ids: Tensor, cache: KVCache, *, float32: bool = False) -> tuple[Tensor, KVCache]:
        return self._logits(Growing(ids, cache), float32), cache

    @torch.no_grad()
    def select(self, cache: KVCache, rows: Tensor, *, used_up: bool = False) -> KVCache:
        rows = rows.to(self.device)
        return cache.take(rows) if used_up else cache.select(rows)

    # The screen -------------------------------------------------------------------------------

    @torch.no_grad()
    def freeze(
        self,
        prefix: Sequence[int],
        suffix: Sequence[int],
        tokens: Tensor,
        *,
        coarse: bool = False,
    ) -> FrozenCache:
        body = torch.tensor(suffix[:-1], dtype=torch.long).expand(len(tokens), -1)
        ids = torch.cat([tokens[:, None], body], dim=1)
        rows = Suffixes(prefix, ids, len(tokens), keeps=True)
        self._run(rows, False, None)
        return FrozenCache(suffix[-1], len(prefix), rows.kept)

    @torch.no_grad()
    def screen(self, frozen: Any, tokens: Tensor) -> Tensor:
        return self._logits(ScreenedRows(frozen, tokens), False)

    @torch.no_grad()
    def screen_scores(self, frozen: Any, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor]] = []

        def consume(start: int, logits: Tensor) -> None:
            found.append(scores(logits, tokens[start : start + len(logits)]))

        self._run(ScreenedRows(frozen, tokens[:count]), False, consume)
        return torch.cat([log_p for log_p, _ in found]), torch.cat([gap for _, gap in found])

    def gradient(self, ids: Any, position: int, objective: Any) -> tuple[float, Tensor]:
        raise RunError(
            "a streamed model has no gradients; use search: surrogate, screen or low-norm, or set "
            "model.residency: resident"
        )

    # A pass -----------------------------------------------------------------------------------

    def _run(self, rows: Rows, float32: bool, consume: Consume | None) -> None:
        """Brings rows through the model; without `consume` no logits are computed."""
        model, units = self.model, self.model.units
        dtype = torch.float32 if float32 else self.arithmetic
        workspace = Workspace(dtype, self.device)
        rows.begin(self._embedded(rows.ids, workspace), self._layout, workspace)
        mixture: Mixture | None = None
        for unit, tensors in model.read(units.body):
            if unit.kind == "expert":
                assert mixture is not None
                mixture.add(unit.expert, tensors, workspace)
                continue
            mixture = self._attend(rows, unit.layer, tensors, workspace)
        mixture = None
        workspace = Workspace(dtype, self.device)  # frees what the layers needed
        if consume is not None:
            self._consume_logits(rows.last(), workspace, consume)

    def _attend(
        self, rows: Rows, number: int, tensors: dict[str, Tensor], workspace: Workspace
    ) -> Mixture | None:
        """Attention of a layer, and its MLP; returns the experts that are still to be added."""
        moved = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        with filled(self.model.module.model.layers[number], moved) as module:
            layer = recognize_layer(module)
            rows.attend(layer, number, number == len(self._layout.layers) - 1, workspace)
            if isinstance(layer.mlp, ExpertsLayout):
                return Mixture(layer, layer.mlp, rows.streams, workspace)
            for x in rows.streams:
                for part in x.split(MLP_ROWS):
                    add_mlp(layer, part, workspace)
        return None

    def _embedded(self, ids: Tensor, workspace: Workspace) -> Callable[[Tensor], Tensor]:
        """A function from ids `(B, S)` to their embeddings `(B * S, H)`; reads the embedding."""
        wanted = ids.unique()
        kept = torch.empty(len(wanted), self.model.hidden_size, dtype=self.model.compute_dtype)
        for unit, tensors in self.model.read(self.model.units.embedding):
            block = tensors["weight"]
            inside = (wanted >= unit.start) & (wanted < unit.start + len(block))
            kept[inside] = block[wanted[inside] - unit.start].to(kept.dtype)
        layout = replace(self._layout, embedding=kept.to(self.device))
        return lambda some: embed(
            layout, torch.searchsorted(wanted, some.contiguous()).to(self.device), workspace
        )

    def _consume_logits(self, last: Tensor, workspace: Workspace, consume: Consume) -> None:
        """Computes the logits of the residual stream `(N, H)` of last positions."""
        model = self.model
        weight = model.read_whole(model.units.norm).to(self.device)
        layout = replace(self._layout, norm=replace(self._layout.norm, weight=weight))
        size = model.vocab_size
        group = max(1, LOGIT_BYTES // (4 * size))
        held = model.read_whole(model.units.whole_head) if model.plan.holds_head else None
        for start in range(0, len(last), group):
            part = last[start : start + group].contiguous()
            if held is not None:
                whole = replace(layout, head=linear(held.to(self.device)))
                consume(start, head_logits(whole, part, workspace))
                continue
            logits = torch.empty(len(part), size, dtype=workspace.dtype, device=self.device)
            for unit, tensors in model.read(model.units.head):
                block = replace(layout, head=linear(tensors["weight"].to(self.device)))
                columns = slice(unit.start, unit.start + len(tensors["weight"]))
                logits[:, columns] = head_logits(block, part, workspace)
            consume(start, logits)


def streamed_backend(
    model: StreamedModel, trial: FastBackend | None, reason: str, arithmetic: str
) -> StreamedBackend:
    """Returns the backend of a streamed model.

    Args:
        model: The model.
        trial: The fast backend of its stand-in; None if that does not have the Llama layout.
        reason: Why it does or does not.
        arithmetic: `execution.arithmetic` of the spec.

    Raises:
        PreflightError: Its layers compute something else than those of Llama.
    """
    problem = reason
    if trial is not None:
        try:
            return StreamedBackend(model, trial, arithmetic)
        except OtherLayoutError as error:
            problem = str(error)
    raise PreflightError(
        f"model.residency: {model.architecture} cannot be streamed: {problem}; set "
        "model.residency: resident"
    )
