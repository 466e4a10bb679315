"""Computes the indicators of `spec/indicators.py`, and the norm, of every row of a vocabulary.

The output embedding is read in blocks and never copied, so memory stays flat. Its indicators are
computed at the first use, all of them together and once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from glitchrun.errors import PreflightError
from glitchrun.spec.indicators import INDICATORS, LOWEST
from glitchrun.vocabulary.text import raw_bytes

_BLOCK_BYTES = 32 * 1024**2
"""Size of a block of rows in float32."""
_SUBSPACE = 4
"""Directions that are iterated together. With more of them, the table is read fewer times."""
_MOST_STEPS = 60
_NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
"""Bytes that no text contains, so that training never sees their tokens."""
_TINY = 1e-6
"""Smallest product of norms, as in the code of Land and Bartolo."""


class Entries(Protocol):
    """The part of a `Vocabulary` that is used here."""

    norms: Tensor | Sequence[float]

    @property
    def pieces(self) -> Sequence[str | None]:
        """Each row's entry in the tokenizer."""

    def ids(self, categories: Sequence[str]) -> list[int]:
        """Rows of the given categories."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Rows that training hardly changed."""

    ids: tuple[int, ...]
    source: str
    """How they were found, as a phrase."""


class Indicators:
    """The indicators of one model."""

    def __init__(
        self,
        outputs: Callable[[], Iterable[Tensor]],
        vocabulary: Entries,
        *,
        tied: bool,
        unused: Sequence[int] | None = None,
    ) -> None:
        """Take the embeddings of a model.

        Args:
            outputs: Gives the output embedding in blocks of rows, `(R, H)` each.
            vocabulary: The vocabulary, with the norms of the input embedding.
            tied: Whether the input embedding is the same matrix.
            unused: Ids of the reference rows (`tokens.unused`); None to find them.

        Raises:
            PreflightError: an id of `unused` is outside the vocabulary.
        """
        self._table = _Table(outputs)
        self._vocabulary = vocabulary
        self._unused = unused
        self.tied = tied
        """Whether input and output embedding are the same matrix."""
        rows = len(vocabulary.norms)
        for token_id in unused or ():
            if token_id >= rows:
                raise PreflightError(
                    f"tokens.unused: the model's embedding has {rows:,} rows, so {token_id} is "
                    "none of them"
                )

    @classmethod
    def of_tables(cls, inputs: Tensor, outputs: Tensor, vocabulary: Entries) -> Indicators:
        """The indicators of an input and an output embedding `(V, H)` in memory."""
        tied = bool(inputs.data_ptr() == outputs.data_ptr())
        return cls(lambda: [outputs], vocabulary, tied=tied)

    @property
    def main(self) -> str:
        """The indicator that Land and Bartolo use: the input norm, or for tied embeddings the
        distance to the reference rows."""
        return "to_unused" if self.tied and self.reference.ids else "input_norm"

    @cached_property
    def reference(self) -> Reference:
        """The reference rows: those that the spec names; else rows without an entry, entries that
        are reserved by their name, and bytes that no text contains; else unreachable tokens; else
        the tokens of raw bytes; else none."""
        if self._unused is not None:
            return Reference(tuple(self._unused), "named by tokens.unused")
        unused = self._vocabulary.ids(("unused",))
        never = [row for row, piece in enumerate(self._vocabulary.pieces) if _is_never(piece)]
        counts = ((len(unused), "unused or reserved entries"), (len(never), "bytes of no text"))
        if ids := sorted({*unused, *never}):
            return Reference(tuple(ids), " and ".join(f"{n:,} {what}" for n, what in counts if n))
        for category, what in (("unreachable", "unreachable tokens"), ("byte", "raw bytes")):
            if ids := self._vocabulary.ids((category,)):
                return Reference(tuple(ids), f"{len(ids):,} {what}")
        return Reference((), "none")

    @cached_property
    def ordinary(self) -> list[int]:
        """Tokens of the category `normal`, among which the lowest values are counted."""
        return self._vocabulary.ids(("normal",))

    def values(self, name: str) -> Tensor | None:
        """An indicator of every row: float32 `(V,)` on the CPU, NaN where it is not finite. None if
        it is undefined, because there are no reference rows.

        Args:
            name: A name of `INDICATORS`.
        """
        if name == "input_norm":
            return _finite(torch.as_tensor(self._vocabulary.norms, dtype=torch.float32))
        return self._of_outputs.get(name)

    @cached_property
    def _of_outputs(self) -> dict[str, Tensor]:
        """The indicators of the output embedding, `(V,)` each."""
        found = self._table.measured(self.reference.ids)
        found["output_norm"] = found.pop("norm")
        return {name: _finite(values) for name, values in found.items()}

    def threshold(self, name: str) -> float | None:
        """The value at or below which 2 % of the ordinary tokens are; None if undefined."""
        values = self.values(name)
        if values is None or not self.ordinary:
            return None
        known = values[self.ordinary]
        known = known[known.isfinite()].double()
        return float(known.quantile(LOWEST)) if len(known) else None

    def of(self, ids: Sequence[int]) -> dict[str, list[float | None]]:
        """Every indicator of the tokens `ids` by name; None where it is undefined."""
        found: dict[str, list[float | None]] = {}
        for name in INDICATORS:
            values = self.values(name)
            known = None if values is None else values[list(ids)].tolist()
            found[name] = [None if v != v else v for v in known or [float("nan")] * len(ids)]
        return found


def measured(table: Tensor, unused: Sequence[int]) -> dict[str, Tensor]:
    """Norms and distances of the rows of an embedding `(V, H)` in memory, `(V,)` each: `norm`,
    `to_mean`, and, if there are `unused` rows, `to_unused` and `to_unused_without_component`."""
    return _Table(lambda: [table]).measured(unused)


def _is_never(piece: str | None) -> bool:
    data = raw_bytes(piece) if piece else None
    return data is not None and len(data) == 1 and data[0] in _NEVER_IN_UTF8


def _finite(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, torch.nan)


@dataclass(frozen=True, slots=True)
class _Sums:
    norms: Tensor
    """(V,) L2 norm of each row, on the CPU."""
    mean: Tensor
    """(H,) mean of the rows."""
    unit_mean: Tensor
    """(H,) mean of the normalized rows."""
    rows: Tensor
    """(N, H) the rows asked for."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows `(V, H)` of a matrix, read in blocks; float32 on the device of each block."""

    source: Callable[[], Iterable[Tensor]]

    def blocks(self) -> Iterator[Tensor]:
        for block in self.source():
            for part in block.detach().split(max(1, _BLOCK_BYTES // (4 * block.shape[1]))):
                yield part.float()

    def measured(self, unused: Sequence[int]) -> dict[str, Tensor]:
        """As the function of this name, of the rows as they are read."""
        sums = self.sums(unused)
        directions: dict[str, tuple[Tensor, Tensor | None]] = {"to_mean": (sums.unit_mean, None)}
        if unused:
            component = self.first_component(sums.mean)
            rows = sums.rows
            without = rows - torch.outer(rows @ component, component)
            directions["to_unused"] = (rows.mean(dim=0), None)
            directions["to_unused_without_component"] = (without.mean(dim=0), component)
        found = self.distances([*directions.values()])
        return {"norm": sums.norms, **dict(zip(directions, found, strict=True))}

    def sums(self, ids: Sequence[int]) -> _Sums:
        """Norms and means of all rows, and the rows `ids`, from one reading."""
        norms, totals, units, rows, start = [], [], [], [], 0
        wanted = torch.tensor(sorted(ids), dtype=torch.long)
        for part in self.blocks():
            norms.append(part.norm(dim=1).cpu())
            known = part.nan_to_num(0.0, 0.0, 0.0)  # a row that overflowed spoils no other
            totals.append(known.double().sum(dim=0))
            units.append(normalize(known, dim=1).double().sum(dim=0))
            here = wanted[(wanted >= start) & (wanted < start + len(part))] - start
            rows.append(part[here.to(part.device)])
            start += len(part)
        first = totals[0].device
        mean, unit_mean = (
            (torch.stack([one.to(first) for one in parts]).sum(dim=0) / start).float()
            for parts in (totals, units)
        )
        return _Sums(torch.cat(norms), mean, unit_mean, torch.cat([r.to(first) for r in rows]))

    def distances(self, directions: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Cosine distances of all rows to each direction, `(V,)` on the CPU, from one reading.

        Args:
            directions: Directions `(H,)`, each with the unit vector `(H,)` whose component is
                removed from the rows before, or None.
        """
        found: list[list[Tensor]] = [[] for _ in directions]
        for part in self.blocks():
            for (direction, component), values in zip(directions, found, strict=True):
                rows = part
                if component is not None:
                    rows = part - torch.outer(part @ component, component)
                lengths = (rows.norm(dim=1) * direction.norm()).clamp(min=_TINY)
                values.append((1 - rows @ direction / lengths).cpu())
        return [torch.cat(values) for values in found]

    def first_component(self, mean: Tensor) -> Tensor:
        """The direction `(H,)` of largest variance of rows with the mean `(H,)`, float32.

        Subspace iteration with a Rayleigh-Ritz step (Golub and Van Loan, Matrix Computations, 8.3),
        which reads the rows once in each step.
        """
        width, device = len(mean), mean.device
        generator = torch.Generator().manual_seed(0)
        product = torch.randn(width, min(_SUBSPACE, width), generator=generator).to(device)
        direction = torch.zeros(width, device=device, dtype=torch.float64)
        for _ in range(_MOST_STEPS):
            basis = torch.linalg.qr(product).Q
            product = torch.zeros_like(basis)
            for part in self.blocks():
                known = part.nan_to_num(0.0, 0.0, 0.0)
                along = known @ basis - mean @ basis
                product += known.T @ along - torch.outer(mean, along.sum(dim=0))
            small = (basis.T @ product).double()
            top = torch.linalg.eigh((small + small.T) / 2).eigenvectors[:, -1]
            previous, direction = direction, normalize(basis.double() @ top, dim=0)
            if abs(float(torch.dot(previous, direction))) > 1 - 1e-10:
                break
        return direction.float()


_CHUNK = 8192
"""Rows of an embedding that are processed at a time, to bound the memory of temporary copies."""


def row_norms(weight: Tensor | Iterable[Tensor], chunk: int = _CHUNK) -> Tensor:
    """L2 norm of each row of an embedding `(V, H)`: float32 `(V,)` on the CPU.

    Converts `chunk` rows at a time, so that there is never a second copy of the embedding.

    Args:
        weight: The embedding, or blocks of its rows `(R, H)`, of which one is needed at a time.
        chunk: Rows converted at a time.
    """
    blocks = [weight] if isinstance(weight, Tensor) else weight
    parts = (part for block in blocks for part in block.split(chunk))
    return torch.cat([rows.detach().float().norm(dim=1).cpu() for rows in parts])
