"""Forward passes of any transformers causal model behind prompts that share a prefix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glitchrun.errors import RunError
from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.float32 import Float32Arithmetic
from glitchrun.probing.statistics import Statistics, check_finite, measure


@dataclass(frozen=True, eq=False, slots=True)
class Frozen:
    """A prompt whose suffix no longer looks at the token, its last position aside."""

    prefix: tuple[int, ...]
    last: int
    """The suffix's last id, which is run for every token."""
    means: list[tuple[Tensor, Tensor]]
    """For each layer keys and values of the positions between, `(1, groups, F, D)`."""


class Backend:
    """Runs a model over batches of equally long suffixes behind one prefix.

    The keys and values of a prefix are computed once and kept; every forward pass sees the suffix
    positions only, and the head sees the last position only.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.device = model.input_embeddings.device
        self._prefixes: dict[tuple[tuple[int, ...], bool], Any] = {}

    @property
    def arithmetic(self) -> torch.dtype:
        """In which passes compute that do not ask for float32."""
        return self.model.compute_dtype

    @torch.no_grad()
    def last_logits(
        self, prefix: Sequence[int], suffixes: Tensor, *, float32: bool = False
    ) -> Tensor:
        """Next-token logits after each `prefix + suffix`.

        Args:
            prefix: Token ids shared by all rows.
            suffixes: Token ids, `(B, S)`.
            float32: Do the arithmetic in float32, whatever the weights are stored in.

        Returns:
            `(B, V)`, float32.
        """
        cache = self.start(prefix, len(suffixes), float32=float32)
        logits, _ = self.step(suffixes, cache, float32=float32)
        return logits

    @torch.no_grad()
    def statistics(
        self,
        prefix: Sequence[int],
        suffixes: Tensor,
        targets: Tensor,
        *,
        float32: bool = False,
    ) -> Statistics:
        """Statistics of the first `len(targets)` rows of `last_logits`, each asked for its target.

        Args:
            prefix: Token ids shared by all rows.
            suffixes: Token ids, `(B, S)`.
            targets: Token ids, `(T,)`, T at most B, on the model's device.
            float32: Do the arithmetic in float32, whatever the weights are stored in.
        """
        logits = self.last_logits(prefix, suffixes, float32=float32)
        return measure(logits[: len(targets)], targets)

    @torch.no_grad()
    def start(self, prefix: Sequence[int], rows: int, *, float32: bool = False) -> Any:
        """A key/value cache that holds the prefix for `rows` rows, free to be appended to.

        None for an empty prefix: the model then makes a cache of its own.
        """
        if not prefix:
            return None
        key = (tuple(prefix), float32)
        if key not in self._prefixes:
            self._prefixes[key] = self._prefill(prefix, float32)
        return self.select(self._prefixes[key], torch.zeros(rows, dtype=torch.long))

    def _prefill(self, prefix: Sequence[int], float32: bool) -> Any:
        ids = torch.tensor([list(prefix)], device=self.device)
        with self._arithmetic(float32):
            return self.model.module(
                input_ids=ids, use_cache=True, logits_to_keep=1
            ).past_key_values

    @torch.no_grad()
    def step(self, ids: Tensor, cache: Any, *, float32: bool = False) -> tuple[Tensor, Any]:
        """Appends ids `(B, S)` to a cache; returns the last logits `(B, V)` and the longer cache.

        The cache given is used up: what it holds afterwards is the backend's affair.
        """
        with self._arithmetic(float32), self._contiguous_head():
            out = self.model.module(
                input_ids=ids.to(self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return finite(out.logits[:, -1].float()), out.past_key_values

    @torch.no_grad()
    def select(self, cache: Any, rows: Tensor) -> Any:
        """A new cache of the rows at these indices `(R,)`; the one given stays as it was.

        Indices may be left out, repeated and in any order: rows that are finished leave so, and one
        row becomes several that go different ways.
        """
        chosen = copy.copy(cache)
        chosen.layers = [copy.copy(layer) for layer in cache.layers]
        chosen.batch_select_indices(rows.to(self.device))
        return chosen

    @torch.no_grad()
    def freeze(self, prefix: Sequence[int], suffix: Sequence[int], tokens: Tensor) -> Frozen:
        """The keys and values of a suffix, its last id aside, averaged over some tokens.

        Args:
            prefix: Ids before the token; at least one.
            suffix: Ids after the token; at least one.
            tokens: `(C,)` ids that stand between them in turn.

        Raises:
            RunError: this model's cache does not keep every position.
        """
        body = torch.tensor(suffix[:-1], dtype=torch.long).expand(len(tokens), -1)
        ids = torch.cat([tokens[:, None], body], dim=1)
        _, cache = self.step(ids, self.start(prefix, len(tokens)))
        after = len(prefix) + 1
        means = [self._mean(layer, after, after + len(suffix) - 1) for layer in cache.layers]
        return Frozen(tuple(prefix), suffix[-1], means)

    def _mean(self, layer: Any, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Averages over the rows of one layer's keys and values, `(1, groups, end - start, D)`."""
        if getattr(layer, "keys", None) is None or layer.keys.shape[-2] != end:
            raise RunError(
                "search: screen and cascade need a model that keeps keys and values of every "
                "position; take search: surrogate"
            )
        kept = layer.keys[:, :, start:end], layer.values[:, :, start:end]
        keys, values = (part.float().mean(dim=0, keepdim=True).to(part.dtype) for part in kept)
        return keys, values

    @torch.no_grad()
    def screen(self, frozen: Frozen, tokens: Tensor) -> Tensor:
        """Approximate next-token logits `(B, V)` after `prefix + token + suffix`, float32.

        Only the token's position and the last one are run: what the others would have made of the
        token is replaced by what they made of the calibration tokens on average.
        """
        cache = self.start(frozen.prefix, len(tokens))
        cache = self._append(tokens[:, None], cache)
        for index, (keys, values) in enumerate(frozen.means):
            rows = (len(tokens), -1, -1, -1)
            cache.update(keys.expand(rows), values.expand(rows), index)
        last = torch.full((len(tokens), 1), frozen.last)
        logits, _ = self.step(last, cache)
        return logits

    def _append(self, ids: Tensor, cache: Any) -> Any:
        """Appends ids to a cache; no logits are taken."""
        with self._arithmetic(False):
            out = self.model.module.base_model(
                input_ids=ids.to(self.device), past_key_values=cache, use_cache=True
            )
        return out.past_key_values

    @torch.no_grad()
    def logits_alone(self, ids: Sequence[int], *, float32: bool = False) -> Tensor:
        """Next-token logits `(V,)` after one whole prompt, without cache or batch.

        This is the one fixed shape in which verdicts within rounding are settled.
        """
        row = torch.tensor([list(ids)], device=self.device)
        with self._arithmetic(float32):
            out = self.model.module(input_ids=row, use_cache=False, logits_to_keep=1)
        return finite(out.logits[0, -1].float())

    def gradient(
        self, ids: Sequence[int], position: int, objective: Callable[[Tensor], Tensor]
    ) -> tuple[float, Tensor]:
        """A scalar of the next-token logits after one prompt and its gradient.

        Args:
            ids: The whole prompt.
            position: The index whose input embedding the gradient is taken at.
            objective: From logits `(V,)` to a scalar.

        Returns:
            The scalar, and its gradient `(H,)` in float32.
        """
        row = torch.tensor([list(ids)], device=self.device)
        embeds = self.model.module.get_input_embeddings()(row).detach().requires_grad_(True)
        with torch.enable_grad():
            out = self.model.module(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
            value = objective(finite(out.logits[0, -1].float()))
            (gradient,) = torch.autograd.grad(value, embeds)
        return float(value.detach()), gradient[0, position].float()

    def _arithmetic(self, float32: bool) -> Any:
        if float32 and self.model.compute_dtype != torch.float32:
            return Float32Arithmetic()
        return nullcontext()

    @contextmanager
    def _contiguous_head(self) -> Iterator[None]:
        # A bfloat16 product with a strided [B, 1, H] slice is several times slower on a CPU than
        # with a contiguous one.
        head = self.model.module.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
        try:
            yield
        finally:
            hook.remove()


def finite(logits: Tensor) -> Tensor:
    """The logits; RunError where numbers overflowed."""
    check_finite(logits.amax(dim=-1))
    return logits
