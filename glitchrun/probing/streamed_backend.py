"""The backend of streamed models: every token of a pass goes through a layer before the next one.

A pass reads the weights once:

1. the embedding, of which the rows of the pass are kept;
2. each layer: attention chunk by chunk behind the layer's own keys and values of the prefix, then
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
from glitchrun.plan.batch_sizes import CHUNK_ROWS, LOGIT_BYTES, SCREEN_BATCH
from glitchrun.probing.backend import Backend
from glitchrun.probing.fast.buffers import KVCache, Workspace, empty_cache
from glitchrun.probing.fast.forward import attend_cached, attend_last, embed, head_logits
from glitchrun.probing.fast.frozen import FrozenCache, attend_frozen, mean_suffix
from glitchrun.probing.fast.layers import add_gated, add_mlp, rms_norm, rotation_of, route
from glitchrun.probing.fast.llama_layout import (
    ExpertsLayout,
    LayerLayout,
    LlamaLayout,
    OtherLayoutError,
    expert_of,
    linear,
    recognize,
    recognize_layer,
)
from glitchrun.probing.fast_backend import FastBackend, arithmetic_on
from glitchrun.probing.logit_statistics import Statistics, check_finite, measure, scores
from glitchrun.probing.model_cache import CacheMode

_MLP_ROWS = 1024
"""Positions whose MLP is computed together."""
Consume = Callable[[int, Tensor], None]
"""Takes the first row of a group, and its logits `(G, V)` in the arithmetic of the pass."""


class StreamedBackend(Backend):
    """Runs a `StreamedModel`; `trial` is the fast backend of its small stand-in."""

    def __init__(self, model: StreamedModel, trial: FastBackend) -> None:
        self.model: StreamedModel = model
        self.device = model.device
        self.cache_mode = CacheMode.FULL
        self._trial = trial
        self._layout = recognize(model.module, empty=True)

    @property
    def trial(self) -> FastBackend:
        return self._trial

    @property
    def arithmetic(self) -> torch.dtype:
        return arithmetic_on(self.device, self.model.compute_dtype)

    @property
    def pass_rows(self) -> int | None:
        return self.model.plan.verify_tokens

    @property
    def screen_rows(self) -> int | None:
        return self.model.plan.screen_tokens

    # Verification -----------------------------------------------------------------------------

    @torch.no_grad()
    def last_logits(
        self, prefix: Sequence[int], suffixes: Tensor, *, float32: bool = False
    ) -> Tensor:
        return self._logits(_Suffixes(prefix, suffixes, CHUNK_ROWS), float32)

    @torch.no_grad()
    def logits_alone(self, ids: Sequence[int], *, float32: bool = False) -> Tensor:
        return self._logits(_Suffixes((), torch.tensor([list(ids)]), 1), float32)[0]

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
        return self._statistics(_Suffixes(prefix, rows, CHUNK_ROWS), targets, float32)

    @torch.no_grad()
    def statistics_alone(self, prompts: Tensor, targets: Tensor) -> Statistics:
        return self._statistics(_Suffixes((), prompts, 1), targets, float32=True)

    def _statistics(self, rows: _Suffixes, targets: Tensor, float32: bool) -> Statistics:
        parts: list[Statistics] = []

        def consume(start: int, logits: Tensor) -> None:
            parts.append(measure(logits.float(), targets[start : start + len(logits)]))

        self._run(rows, float32, consume)
        columns = ([getattr(part, one.name) for part in parts] for one in fields(Statistics))
        return Statistics(*(torch.cat(column) for column in columns))

    def _logits(self, rows: _Rows, float32: bool) -> Tensor:
        parts: list[Tensor] = []
        self._run(rows, float32, lambda _, logits: parts.append(logits.float()))
        return check_finite(torch.cat(parts))

    # Sampling: keys and values of all layers --------------------------------------------------

    @torch.no_grad()
    def start(self, prefix: Sequence[int], rows: int, *, float32: bool = False) -> KVCache:
        dtype = torch.float32 if float32 else self.arithmetic
        cache = empty_cache(self._layout, dtype, self.device)
        if prefix:
            self._run(_Growing(torch.tensor([list(prefix)]), cache), float32, None)
        return cache.repeat(rows)

    @torch.no_grad()
    def step(self, ids: Tensor, cache: KVCache, *, float32: bool = False) -> tuple[Tensor, KVCache]:
        return self._logits(_Growing(ids, cache), float32), cache

    @torch.no_grad()
    def select(self, cache: KVCache, rows: Tensor) -> KVCache:
        return cache.select(rows.to(self.device))

    # The screen -------------------------------------------------------------------------------

    @torch.no_grad()
    def freeze(self, prefix: Sequence[int], suffix: Sequence[int], tokens: Tensor) -> FrozenCache:
        body = torch.tensor(suffix[:-1], dtype=torch.long).expand(len(tokens), -1)
        ids = torch.cat([tokens[:, None], body], dim=1)
        rows = _Suffixes(prefix, ids, len(tokens), keeps=True)
        self._run(rows, False, None)
        return FrozenCache(suffix[-1], len(prefix), rows.kept)

    @torch.no_grad()
    def screen(self, frozen: Any, tokens: Tensor) -> Tensor:
        return self._logits(_Screened(frozen, tokens), False)

    @torch.no_grad()
    def screen_scores(self, frozen: Any, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor]] = []

        def consume(start: int, logits: Tensor) -> None:
            part = check_finite(logits.float())
            found.append(scores(part, tokens[start : start + len(part)]))

        self._run(_Screened(frozen, tokens[:count]), False, consume)
        return torch.cat([log_p for log_p, _ in found]), torch.cat([gap for _, gap in found])

    def gradient(self, ids: Any, position: int, objective: Any) -> tuple[float, Tensor]:
        raise RunError(
            "a streamed model has no gradients; use search: surrogate, screen or low-norm, or set "
            "model.residency: resident"
        )

    # A pass -----------------------------------------------------------------------------------

    def _run(self, rows: _Rows, float32: bool, consume: Consume | None) -> None:
        """Brings rows through the model; without `consume` no logits are computed."""
        model, units = self.model, self.model.units
        dtype = torch.float32 if float32 else self.arithmetic
        workspace = Workspace(dtype, self.device)
        rows.begin(self._embedded(rows.ids, workspace), self._layout, workspace)
        mixture: _Mixture | None = None
        for unit, tensors in model.read(units.body):
            if unit.kind == "expert":
                assert mixture is not None
                mixture.add(unit.expert, tensors, workspace)
                continue
            mixture = self._attend(rows, unit.layer, tensors, workspace)
        mixture = None
        if consume is not None:
            self._consume_logits(rows.last(), workspace, consume)

    def _attend(
        self, rows: _Rows, number: int, tensors: dict[str, Tensor], workspace: Workspace
    ) -> _Mixture | None:
        """Attention of a layer, and its MLP; returns the experts that are still to be added."""
        moved = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        with filled(self.model.module.model.layers[number], moved) as module:
            layer = recognize_layer(module)
            rows.attend(layer, number, number == len(self._layout.layers) - 1, workspace)
            if isinstance(layer.mlp, ExpertsLayout):
                return _Mixture(layer, layer.mlp, rows.streams, workspace)
            for x in rows.streams:
                for part in x.split(_MLP_ROWS):
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


# The rows of a pass ---------------------------------------------------------------------------


class _Rows:
    """Rows of equal shape that go through a pass together."""

    ids: Tensor
    """Every id whose embedding is needed."""
    streams: list[Tensor]
    """The residual streams `(M, H)` to which MLPs are added."""

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        """Fills `streams`."""
        raise NotImplementedError

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        """Adds a layer's attention to `streams`."""
        raise NotImplementedError

    def last(self) -> Tensor:
        """The residual stream `(N, H)` of the last position of each row."""
        return self.streams[0]


class _Suffixes(_Rows):
    """Suffixes `(N, S)` behind one prefix, in chunks of rows."""

    def __init__(
        self, prefix: Sequence[int], suffixes: Tensor, chunk: int, *, keeps: bool = False
    ) -> None:
        self._prefix = torch.tensor([list(prefix)], dtype=torch.long)
        self._suffixes = suffixes.cpu()
        self._chunk = chunk
        self._keeps = keeps
        self.ids = torch.cat([self._prefix.flatten(), self._suffixes.flatten()])
        self.kept: list[tuple[Tensor, Tensor]] = []
        """For each layer, keys and values of the prefix and the mean of those behind the token."""

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        self._layout = layout
        x = _embedded_rows(embedded, self._suffixes, self._chunk)
        length, steps = self._prefix.shape[1], self._suffixes.shape[1]
        self.streams = [x, embedded(self._prefix)] if length else [x]
        positions = torch.arange(length + steps, device=x.device)
        self._rotations = [
            rotation_of(layout, part, x) for part in (positions[:length], positions[length:])
        ]

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        (rows, steps), (x, *others) = self._suffixes.shape, self.streams
        prefix = empty_cache(replace(self._layout, layers=(layer,)), x.dtype, x.device)
        for before in others:
            attend_cached(layer, before, self._rotations[0], prefix, 0, workspace)
            prefix.length = len(before)
        ends = []
        for start in range(0, rows, self._chunk):
            part = x[start * steps : (start + self._chunk) * steps]
            cache = prefix.repeat(len(part) // steps)
            if is_last:
                shaped = part.view(-1, steps, x.shape[1])
                ends.append(attend_last(layer, shaped, self._rotations[1], cache, 0, workspace))
            else:
                attend_cached(layer, part, self._rotations[1], cache, 0, workspace)
            cache.length += steps
            if self._keeps:
                parts = (cache.keys[0], cache.values[0])
                keys, values = (mean_suffix(one, prefix.length, cache.length) for one in parts)
                self.kept.append((keys, values))
        if is_last:
            self.streams = [torch.cat(ends)]


class _Screened(_Rows):
    """Tokens `(N,)` with the last id of a prompt whose suffix is frozen."""

    def __init__(self, frozen: FrozenCache, tokens: Tensor) -> None:
        self._frozen = frozen
        self.ids = torch.stack([tokens.cpu(), torch.full_like(tokens.cpu(), frozen.last)], dim=1)

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        self._rows = SCREEN_BATCH["cpu"]
        self.streams = [_embedded_rows(embedded, self.ids, self._rows)]
        positions = torch.tensor(self._frozen.positions, device=workspace.device)
        self._rotation = rotation_of(layout, positions, self.streams[0])

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        for part in self.streams[0].split(2 * self._rows):
            attend_frozen(layer, part, self._rotation, self._frozen, number, workspace)
        if is_last:
            (x,) = self.streams
            self.streams = [x.view(len(self.ids), 2, -1)[:, 1].contiguous()]


class _Growing(_Rows):
    """Ids `(B, S)` that are appended to a cache of all layers."""

    def __init__(self, ids: Tensor, cache: KVCache) -> None:
        self.ids = ids.cpu()
        self._cache = cache

    def begin(
        self, embedded: Callable[[Tensor], Tensor], layout: LlamaLayout, workspace: Workspace
    ) -> None:
        self.streams = [embedded(self.ids)]
        start = self._cache.length
        positions = torch.arange(start, start + self.ids.shape[1], device=workspace.device)
        self._rotation = rotation_of(layout, positions, self.streams[0])

    def attend(self, layer: LayerLayout, number: int, is_last: bool, workspace: Workspace) -> None:
        (x,), (rows, steps) = self.streams, self.ids.shape
        if not is_last:
            attend_cached(layer, x, self._rotation, self._cache, number, workspace)
            return
        shaped = x.view(rows, steps, -1)
        self.streams = [attend_last(layer, shaped, self._rotation, self._cache, number, workspace)]
        self._cache.length += steps


class _Mixture:
    """The mixture of experts of one layer, to which one expert after the other is added."""

    def __init__(
        self,
        layer: LayerLayout,
        mlp: ExpertsLayout,
        streams: Sequence[Tensor],
        workspace: Workspace,
    ) -> None:
        self._mlp = mlp
        self._streams = streams
        self._normed = [torch.empty_like(x) for x in streams]
        for x, normed in zip(streams, self._normed, strict=True):
            for part, out in zip(x.split(_MLP_ROWS), normed.split(_MLP_ROWS), strict=True):
                out.copy_(rms_norm(part, layer.mlp_norm, workspace))
        chosen = [
            [route(mlp.router, mlp.top_k, part) for part in normed.split(_MLP_ROWS)]
            for normed in self._normed
        ]
        self._weights = [torch.cat([weights for weights, _ in parts]) for parts in chosen]
        self._experts = [torch.cat([experts for _, experts in parts]) for parts in chosen]

    def add(self, number: int, tensors: dict[str, Tensor], workspace: Workspace) -> None:
        """Adds the output of one expert to the positions that are routed to it."""
        names = ("gate_proj", "up_proj", "down_proj")
        expert = expert_of(self._mlp, *(tensors[name].to(workspace.device) for name in names))
        for place, x in enumerate(self._streams):
            rows, slots = torch.where(self._experts[place] == number)
            weights = self._weights[place][rows, slots, None].to(x.dtype)
            for some, share in zip(rows.split(_MLP_ROWS), weights.split(_MLP_ROWS), strict=True):
                if len(some):
                    inner = self._normed[place][some]
                    out = torch.zeros_like(inner)
                    add_gated(expert, inner, out, workspace)
                    x.index_add_(0, some, out.mul_(share))


def _embedded_rows(embedded: Callable[[Tensor], Tensor], ids: Tensor, rows: int) -> Tensor:
    """Embeddings `(N * S, H)` of ids `(N, S)`, some rows at a time."""
    first = embedded(ids[:rows])
    steps = ids.shape[1]
    x = first.new_empty(len(ids) * steps, first.shape[1])
    x[: len(first)] = first
    for start in range(rows, len(ids), rows):
        part = embedded(ids[start : start + rows])
        x[start * steps : start * steps + len(part)] = part
    return x


def streamed_backend(model: StreamedModel, trial: FastBackend | None, reason: str) -> Backend:
    """Returns the backend of a streamed model.

    Args:
        model: The model.
        trial: The fast backend of its stand-in; None if that does not have the Llama layout.
        reason: Why it does or does not.

    Raises:
        PreflightError: Its layers compute something else than those of Llama.
    """
    problem = reason
    if trial is not None:
        try:
            return StreamedBackend(model, trial)
        except OtherLayoutError as error:
            problem = str(error)
    raise PreflightError(
        f"model.residency: {model.architecture} cannot be streamed: {problem}; set "
        "model.residency: resident"
    )
