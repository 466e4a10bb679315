"""Forward passes of any transformers causal model behind prompts that share a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glitchrun.errors import RunError
from glitchrun.model.loaded import LoadedModel
from glitchrun.probing.calling import ModelCall, model_errors
from glitchrun.probing.float32 import Float32Arithmetic
from glitchrun.probing.states import CacheMode, take_rows
from glitchrun.probing.statistics import ROUNDING, Statistics, check_finite, measure


@dataclass(frozen=True, eq=False, slots=True)
class Frozen:
    """A prompt whose suffix no longer looks at the token, its last position aside."""

    prefix: tuple[int, ...]
    last: int
    """The suffix's last id, which is run for every token."""
    means: list[tuple[Tensor, Tensor]]
    """For each layer keys and values of the positions between, `(1, groups, F, D)`."""


@dataclass(frozen=True, eq=False, slots=True)
class BatchState:
    """The token ids of a batch of rows, and the model's cache of them."""

    ids: Tensor
    """`(B, T)` where they may have to run again; else `(B, 0)`."""
    state: Any
    """The model's cache of all T positions; None where it has none."""


class Backend:
    """Runs a model over batches of equally long suffixes behind one prefix.

    The cache of a prefix is computed once. Every forward pass runs the suffix positions only, and
    the head runs the last position only. Where `cache_mode` does not allow that, whole prompts are
    run.
    """

    def __init__(self, model: LoadedModel, cache_mode: CacheMode = CacheMode.ROWS) -> None:
        self.model = model
        self.device = model.input_embeddings.device
        self.cache_mode = cache_mode
        self._call = ModelCall(model.module)
        self._prefixes: dict[tuple[tuple[int, ...], bool], BatchState] = {}

    @property
    def arithmetic(self) -> torch.dtype:
        """In which passes compute that do not ask for float32."""
        return self.model.compute_dtype

    @property
    @torch.no_grad()
    def keeps(self) -> bool:
        """Whether the model returns a cache of past positions."""
        ids = torch.arange(2, device=self.device)[None] % self.model.vocab_size
        with self._arithmetic(True):
            return self._call(ids, keep=True)[1] is not None

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
        """A cache that holds the prefix for `rows` rows, free to be appended to."""
        key = (tuple(prefix), float32)
        if key not in self._prefixes:
            self._prefixes[key] = self._prefill(prefix, float32)
        return self.select(self._prefixes[key], torch.zeros(rows, dtype=torch.long))

    def _prefill(self, prefix: Sequence[int], float32: bool) -> BatchState:
        ids = torch.tensor([list(prefix)], dtype=torch.long, device=self.device)
        if not prefix or self.cache_mode is not CacheMode.ROWS:
            return BatchState(ids, None)
        with self._arithmetic(float32):
            _, state = self._call(ids, keep=True)
        return BatchState(ids[:, :0], state)

    @torch.no_grad()
    def step(self, ids: Tensor, cache: Any, *, float32: bool = False) -> tuple[Tensor, Any]:
        """Appends ids `(B, S)` to a cache; returns the last logits `(B, V)` and the longer cache.

        The cache given is used up: what it holds afterwards is the backend's affair. None stands
        for one that holds nothing.
        """
        ids = ids.to(self.device)
        held = BatchState(ids[:, :0], None) if cache is None else cache
        told = torch.cat([held.ids, ids], dim=1)
        goes_on = held.state is not None and (
            self.cache_mode is CacheMode.ROWS or ids.shape[1] == 1
        )
        with self._arithmetic(float32), self._contiguous_head():
            logits, state = self._call(
                ids if goes_on else told,
                held.state if goes_on else None,
                keep=self.cache_mode is not CacheMode.NOTHING,
            )
        again = told[:, :0] if self.cache_mode is CacheMode.ROWS else told
        return finite(logits.float()), BatchState(again, state)

    @torch.no_grad()
    def select(self, cache: Any, rows: Tensor) -> Any:
        """A new cache of the rows at these indices `(R,)`; the one given stays as it was.

        Indices may be left out, repeated and in any order: rows that are finished leave so, and one
        row becomes several that go different ways.
        """
        rows = rows.to(self.device)
        return BatchState(cache.ids[rows], take_rows(cache.state, rows, len(cache.ids)))

    def why_no_screen(self) -> str | None:
        """Why this model cannot be screened; None where it can.

        The screen holds the positions between the token and the last one at what they were for
        other tokens. For one token held at its own, its logits are those of the whole prompt: that
        is tried.
        """
        size = self.model.vocab_size
        prefix, token, *suffix = (number * 7919 % size for number in range(1, 7))
        try:
            frozen = self.freeze([prefix], suffix, torch.tensor([token]))
            screened = self.screen(frozen, torch.tensor([token, token]))
        except RunError as error:
            return str(error)
        whole = self.logits_alone([prefix, token, *suffix]).to(screened.device)
        apart = (screened - whole).abs().max() / whole.abs().max().clamp(min=1.0)
        if bool(apart < ROUNDING[self.arithmetic]):
            return None
        return "its logits change where a part of the prompt is frozen"

    @torch.no_grad()
    def freeze(self, prefix: Sequence[int], suffix: Sequence[int], tokens: Tensor) -> Any:
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
        _, held = self.step(ids, self.start(prefix, len(tokens)))
        after = len(prefix) + 1
        layers = getattr(held.state, "layers", None)
        if self.cache_mode is not CacheMode.ROWS or not layers:
            raise RunError("it keeps no keys and values that could be held frozen")
        means = [self._mean(layer, after, after + len(suffix) - 1) for layer in layers]
        return Frozen(tuple(prefix), suffix[-1], means)

    def _mean(self, layer: Any, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Averages over the rows of one layer's keys and values, `(1, groups, end - start, D)`."""
        keys: Any = getattr(layer, "keys", None)
        values: Any = getattr(layer, "values", None)
        if not all(isinstance(kept, Tensor) and kept.dim() == 4 for kept in (keys, values)):
            raise RunError("not every layer of it keeps keys and values")
        if keys.shape[-2] != end or hasattr(layer, "conv_states"):
            raise RunError("not every layer of it keeps the keys and values of every position")
        kept = keys[:, :, start:end], values[:, :, start:end]
        keys, values = (part.float().mean(dim=0, keepdim=True).to(part.dtype) for part in kept)
        return keys, values

    @torch.no_grad()
    def screen(self, frozen: Any, tokens: Tensor) -> Tensor:
        """Approximate next-token logits `(B, V)` after `prefix + token + suffix`, float32.

        Only the token's position and the last one are run: what the others would have made of the
        token is replaced by what they made of the calibration tokens on average.
        """
        held = self.start(frozen.prefix, len(tokens))
        with self._arithmetic(False):
            state = self._call.body(tokens[:, None].to(self.device), held.state)
        for index, (keys, values) in enumerate(frozen.means):
            rows = (len(tokens), -1, -1, -1)
            state.update(keys.expand(rows), values.expand(rows), index)
        last = torch.full((len(tokens), 1), frozen.last)
        logits, _ = self.step(last, BatchState(held.ids, state))
        return logits

    @torch.no_grad()
    def logits_alone(self, ids: Sequence[int], *, float32: bool = False) -> Tensor:
        """Next-token logits `(V,)` after one whole prompt, without cache or batch.

        This is the one fixed shape in which verdicts within rounding are settled.
        """
        row = torch.tensor([list(ids)], device=self.device)
        with self._arithmetic(float32):
            logits, _ = self._call(row)
        return finite(logits[0].float())

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

        Raises:
            RunError: this model's forward pass cannot be differentiated.
        """
        row = torch.tensor([list(ids)], device=self.device)
        with torch.enable_grad(), self._embedded() as embedded:
            logits, _ = self._call(row)
            value = objective(finite(logits[0].float()))
            gradient = self._derived(value, embedded)
        return float(value.detach()), gradient[0, position].float()

    def _derived(self, value: Tensor, embedded: Sequence[Tensor]) -> Tensor:
        found = None
        with model_errors(self.model.module):
            if embedded and value.requires_grad:
                (found,) = torch.autograd.grad(value, embedded[0], allow_unused=True)
        if found is None:
            raise RunError(
                f"{type(self.model.module).__name__} passes no gradient to its input "
                "embeddings; use search: surrogate, screen or low-norm"
            )
        return found

    @contextmanager
    def _embedded(self) -> Iterator[list[Tensor]]:
        """What the input embedding gives while the block runs, as leaves of the graph."""
        found: list[Tensor] = []

        def cut(_: Any, given: Any, out: Tensor) -> Tensor:
            found.append(out.detach().requires_grad_(True))
            return found[-1].clone()  # a model may write into what it is given, not into a leaf

        hook = self.model.module.get_input_embeddings().register_forward_hook(cut)
        try:
            yield found
        finally:
            hook.remove()

    def _arithmetic(self, float32: bool) -> Any:
        if float32 and self.model.compute_dtype != torch.float32:
            return Float32Arithmetic()
        return nullcontext()

    @contextmanager
    def _contiguous_head(self) -> Iterator[None]:
        # A bfloat16 product with a strided [B, 1, H] slice is several times slower on a CPU than
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


def finite(logits: Tensor) -> Tensor:
    """The logits; RunError where numbers overflowed."""
    check_finite(logits.amax(dim=-1))
    return logits
