"""The generic backend: runs any causal model of transformers over prompts with a shared prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glitchrun.errors import RunError
from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.logit_statistics import Statistics, check_finite, measure, scores
from glitchrun.probing.model_call import (
    CacheMode,
    Float32Arithmetic,
    ModelCall,
    model_errors,
    select_rows,
)


@dataclass(frozen=True, eq=False, slots=True)
class BatchState:
    """The token ids of a batch of rows, and the model's cache of them."""

    ids: Tensor
    """`(B, T)` if they may have to be run again; else `(B, 0)`."""
    cache: Any
    """The model's cache of all T positions, or None."""


@dataclass(frozen=True, eq=False, slots=True)
class FrozenSuffix:
    """A prompt whose suffix, except its last position, does not depend on the token."""

    prefix: tuple[int, ...]
    last: int
    """The suffix's last id, which is run for every token."""
    means: list[tuple[Tensor, Tensor]]
    """For each layer, mean keys and values of the F frozen positions, `(1, num_kv_heads, F, D)`."""


class Backend:
    """Runs a model over batches of equally long suffixes after one prefix.

    The cache of a prefix is computed once. Every forward pass runs only the suffix positions, and
    the head runs only the last position. If `cache_mode` does not allow that, whole prompts are
    run. `FastBackend` has the same interface.
    """

    def __init__(self, model: LoadedModel, cache_mode: CacheMode = CacheMode.FULL) -> None:
        self.model = model
        self.device = model.input_embeddings.device
        self.cache_mode = cache_mode
        self._call = ModelCall(model.module)
        self._prefixes: dict[tuple[tuple[int, ...], bool], BatchState] = {}

    @property
    def arithmetic(self) -> torch.dtype:
        """The dtype in which passes compute unless they are asked for float32."""
        return self.model.compute_dtype

    @property
    def pass_rows(self) -> int | None:
        """Rows that a pass over a streamed model takes at most, without padding; None for any other
        model."""
        return None

    @property
    def batch_passes(self) -> int:
        """Passes over a streamed model whose near-ties are evaluated together."""
        return 1

    @property
    def answer_rows(self) -> int | None:
        """As `pass_rows`, for passes that generate answers: these keep a cache of all layers."""
        return None

    @property
    def screen_rows(self) -> int | None:
        """Rows of a screen's pass over a streamed model; None for any other model."""
        return None

    @property
    def trial(self) -> Backend:
        """The backend on which to try what the model can do: this one, or that of a small model."""
        return self

    # 1. Verification: one pass after a prefix -------------------------------------------------

    @torch.no_grad()
    def last_logits(
        self, prefix: Sequence[int], suffixes: Tensor, *, float32: bool = False
    ) -> Tensor:
        """Returns next-token logits after each `prefix + suffix`.

        Args:
            prefix: Token ids shared by all rows.
            suffixes: Token ids, `(B, S)`.
            float32: Whether to compute in float32, whatever the dtype of the weights.

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
        """Returns statistics of the first `len(targets)` rows of `last_logits`.

        Args:
            prefix: Token ids shared by all rows.
            suffixes: Token ids, `(B, S)`.
            targets: The target id of each row, `(T,)` with T <= B, on the model's device.
            float32: Whether to compute in float32, whatever the dtype of the weights.
        """
        logits = self.last_logits(prefix, suffixes, float32=float32)
        return measure(logits[: len(targets)], targets)

    @torch.no_grad()
    def logits_alone(self, ids: Sequence[int], *, float32: bool = False) -> Tensor:
        """Returns next-token logits `(V,)` after one whole prompt, without cache or batch.

        Near-ties are re-evaluated in this one fixed shape.
        """
        row = torch.tensor([list(ids)], device=self.device)
        with self._arithmetic(float32):
            logits, _ = self._call(row)
        return check_finite(logits[0].float())

    @torch.no_grad()
    def read_texts(
        self, texts: Sequence[tuple[Sequence[int], int]], read: Callable[[int, int, Tensor], None]
    ) -> None:
        """Computes the next-token logits after texts of any lengths, in the arithmetic of passes.

        A streamed model runs all texts in one pass.

        Args:
            texts: Token ids, and after how many of the last positions logits are read.
            read: Takes the text's index, the position's index among those read, and logits `(V,)`.
        """
        float32 = self.arithmetic == torch.float32
        for place, (ids, count) in enumerate(texts):
            for at in range(count):
                part = ids[: len(ids) - count + 1 + at]
                read(place, at, self.logits_alone(part, float32=float32))

    @torch.no_grad()
    def logits_each(self, prefix: Sequence[int], suffixes: Tensor) -> Tensor:
        """Returns next-token logits `(B, V)`, in float32, of suffixes `(B, S)` run one by one."""
        return torch.cat([self.last_logits(prefix, row[None]) for row in suffixes])

    @torch.no_grad()
    def statistics_alone(self, prompts: Tensor, targets: Tensor) -> Statistics:
        """Returns statistics of whole prompts, each computed alone in float32.

        Args:
            prompts: Token ids, `(B, T)`.
            targets: The target id of each prompt, `(B,)`.
        """
        rows = [self.logits_alone(ids, float32=True) for ids in prompts.tolist()]
        logits = torch.stack(rows)
        return measure(logits, targets.to(logits.device))

    # 2. Sampling: a cache that grows ----------------------------------------------------------

    @torch.no_grad()
    def start(self, prefix: Sequence[int], rows: int, *, float32: bool = False) -> Any:
        """Returns a cache of the prefix for `rows` rows, which `step` may append to."""
        key = (tuple(prefix), float32)
        if key not in self._prefixes:
            self._prefixes[key] = self._prefill(prefix, float32)
        return self.select(self._prefixes[key], torch.zeros(rows, dtype=torch.long))

    def _prefill(self, prefix: Sequence[int], float32: bool) -> BatchState:
        ids = torch.tensor([list(prefix)], dtype=torch.long, device=self.device)
        if not prefix or self.cache_mode is not CacheMode.FULL:
            return BatchState(ids, None)
        with self._arithmetic(float32):
            _, cache = self._call(ids, use_cache=True)
        if cache is None:  # the positions before would be lost
            raise RunError(f"{type(self.model.module).__name__} returned no cache")
        return BatchState(ids[:, :0], cache)

    @torch.no_grad()
    def step(self, ids: Tensor, cache: Any, *, float32: bool = False) -> tuple[Tensor, Any]:
        """Appends ids to a cache.

        Args:
            ids: Token ids, `(B, S)`.
            cache: What `start`, `select` or `step` returned, or None for an empty one. It is used
                up: its contents are undefined afterwards.
            float32: Whether to compute in float32, whatever the dtype of the weights.

        Returns:
            Next-token logits `(B, V)` in float32, and the longer cache.
        """
        ids = ids.to(self.device)
        past = BatchState(ids[:, :0], None) if cache is None else cache
        everything = torch.cat([past.ids, ids], dim=1)
        continues = past.cache is not None and (
            self.cache_mode is CacheMode.FULL or ids.shape[1] == 1
        )
        with self._arithmetic(float32), self._contiguous_head():
            logits, new_cache = self._call(
                ids if continues else everything,
                past.cache if continues else None,
                use_cache=self.cache_mode is not CacheMode.NONE,
            )
        kept_ids = everything[:, :0] if self.cache_mode is CacheMode.FULL else everything
        return check_finite(logits.float()), BatchState(kept_ids, new_cache)

    @torch.no_grad()
    def select(self, cache: Any, rows: Tensor, *, used_up: bool = False) -> Any:
        """Returns a new cache of the rows at indices `(R,)`.

        The given one is unchanged, unless it may be `used_up`, which saves memory.

        Indices may be left out, repeated and in any order. So finished rows are dropped, and one
        row becomes several that continue differently.
        """
        rows = rows.to(self.device)
        return BatchState(cache.ids[rows], select_rows(cache.cache, rows, len(cache.ids)))

    @torch.no_grad()
    def returns_cache(self) -> bool:
        """Returns whether the model returns a cache of past positions."""
        ids = torch.arange(2, device=self.device)[None] % self.model.vocab_size
        with self._arithmetic(True):
            return self._call(ids, use_cache=True)[1] is not None

    # 3. The frozen-suffix screen --------------------------------------------------------------

    @torch.no_grad()
    def freeze(
        self,
        prefix: Sequence[int],
        suffix: Sequence[int],
        tokens: Tensor,
        *,
        coarse: bool = False,
    ) -> Any:
        """Returns a suffix's keys and values, except for its last id, averaged over some tokens.

        Args:
            prefix: Ids before the token; at least one.
            suffix: Ids after the token; at least one.
            tokens: Calibration token ids, `(C,)`.
            coarse: Whether the screen may use a coarser arithmetic than that of `arithmetic`, if it
                is faster.

        Raises:
            RunError: The model's cache does not contain every position.
        """
        body = torch.tensor(suffix[:-1], dtype=torch.long).expand(len(tokens), -1)
        ids = torch.cat([tokens[:, None], body], dim=1)
        _, state = self.step(ids, self.start(prefix, len(tokens)))
        start = len(prefix) + 1
        layers = getattr(state.cache, "layers", None)
        if self.cache_mode is not CacheMode.FULL or not layers:
            raise RunError("it has no keys and values that could be frozen")
        means = [_mean_over_rows(layer, start, start + len(suffix) - 1) for layer in layers]
        return FrozenSuffix(tuple(prefix), suffix[-1], means)

    @torch.no_grad()
    def screen(self, frozen: Any, tokens: Tensor) -> Tensor:
        """Returns approximate next-token logits after `prefix + token + suffix`.

        Only the token's position and the last one are run. The others have the keys and values that
        `freeze` averaged.

        Args:
            frozen: What `freeze` returned.
            tokens: Token ids, `(B,)`.

        Returns:
            `(B, V)`, float32.
        """
        past = self.start(frozen.prefix, len(tokens))
        with self._arithmetic(False):
            cache = self._call.without_head(tokens[:, None].to(self.device), past.cache)
        for index, (keys, values) in enumerate(frozen.means):
            size = (len(tokens), -1, -1, -1)
            cache.update(keys.expand(size), values.expand(size), index)
        last = torch.full((len(tokens), 1), frozen.last)
        logits, _ = self.step(last, BatchState(past.ids, cache))
        return logits

    @torch.no_grad()
    def screen_scores(self, frozen: Any, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns log-probability and gap of the first `count` tokens; see `scores`.

        Args:
            frozen: What `freeze` returned.
            tokens: Token ids, `(B,)`; those after the first `count` fill the batch.
            count: Tokens whose scores are returned.

        Returns:
            `(count,)` each.
        """
        return scores(self.screen(frozen, tokens)[:count], tokens[:count])

    # 4. Gradients -----------------------------------------------------------------------------

    def gradient(
        self, ids: Sequence[int], position: int, objective: Callable[[Tensor], Tensor]
    ) -> tuple[float, Tensor]:
        """Returns an objective of the next-token logits after one prompt, and its gradient.

        Args:
            ids: The whole prompt.
            position: Index of the input embedding with respect to which to differentiate.
            objective: From logits `(V,)` to a scalar.

        Returns:
            The scalar, and its gradient `(H,)` in float32.

        Raises:
            RunError: The model's forward pass cannot be differentiated.
        """
        row = torch.tensor([list(ids)], device=self.device)
        with torch.enable_grad(), self._embeddings() as embeddings:
            logits, _ = self._call(row)
            value = objective(check_finite(logits[0].float()))
            gradient = self._derivative(value, embeddings)
        return float(value.detach()), gradient[0, position].float()

    def _derivative(self, value: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
        found = None
        with model_errors(self.model.module):
            if embeddings and value.requires_grad:
                (found,) = torch.autograd.grad(value, embeddings[0], allow_unused=True)
        if found is None:
            raise RunError(
                f"{type(self.model.module).__name__} passes no gradient to its input "
                "embeddings; use search: surrogate, screen or low-norm"
            )
        return found

    @contextmanager
    def _embeddings(self) -> Iterator[list[Tensor]]:
        """Collects outputs of the input embedding inside a `with` block, as leaves of the graph."""
        leaves: list[Tensor] = []

        def detach(_: Any, args: Any, out: Tensor) -> Tensor:
            leaves.append(out.detach().requires_grad_(True))
            return leaves[-1].clone()  # a model may write into this, but not into a leaf

        hook = self.model.module.get_input_embeddings().register_forward_hook(detach)
        try:
            yield leaves
        finally:
            hook.remove()

    # Helpers ----------------------------------------------------------------------------------

    def _arithmetic(self, float32: bool) -> Any:
        if float32 and self.model.compute_dtype != torch.float32:
            return Float32Arithmetic()
        return nullcontext()

    @contextmanager
    def _contiguous_head(self) -> Iterator[None]:
        # On a CPU, a bfloat16 product with a strided (B, 1, H) slice is several times slower than
        # with a contiguous one.
        head = self.model.module.get_output_embeddings()
        if head is None:
            yield
            return
        hook = head.register_forward_pre_hook(_contiguous)
        try:
            yield
        finally:
            hook.remove()


def _contiguous(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].contiguous(), *args[1:]) if args else args


def _mean_over_rows(layer: Any, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Mean keys and values of one layer of a cache, `(1, num_kv_heads, end - start, D)`."""
    keys: Any = getattr(layer, "keys", None)
    values: Any = getattr(layer, "values", None)
    if not all(isinstance(part, Tensor) and part.dim() == 4 for part in (keys, values)):
        raise RunError("not every layer of it keeps keys and values")
    if keys.shape[-2] != end or hasattr(layer, "conv_states"):
        raise RunError("not every layer of it keeps the keys and values of every position")
    frozen = keys[:, :, start:end], values[:, :, start:end]
    keys, values = (part.float().mean(dim=0, keepdim=True).to(part.dtype) for part in frozen)
    return keys, values
