"""The state of a genetic step after the batches so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glitchrun.events import Batch
from glitchrun.fitness import sort_key

_BEST = 10

Row = Mapping[str, Any]


class SearchView:
    """Collects from the batches of one step what its picture shows."""

    def __init__(self, step: str) -> None:
        """`step` is the step's id."""
        self.step = step
        self.start: Row | None = None
        """The baseline row; None before its batch."""
        self.generations: list[Row] = []
        """One row for each generation, oldest first."""
        self.best: list[Row] = []
        """The fittest sequences, best first: `ids`, `text`, `fitness`, `target_p`, `wanted_p`."""
        self.evaluations = 0
        self.seconds = 0.0
        self.stage = ""
        self.done = 0
        """Finished items of the stage."""
        self.total: int | None = None
        self._singles: list[Row] = []
        """Measured single tokens; ranked once a sequence of one token has appeared."""

    def take(self, batch: Batch) -> None:
        """Adds a batch."""
        self.stage, self.done, self.total = batch.stage, batch.done, batch.total
        self.evaluations += batch.counters.get("evaluations", 0)
        self.seconds += batch.seconds
        for entry in batch.entries:
            self._row(entry.table, entry.cells)

    @property
    def rate(self) -> float:
        """Evaluations per second."""
        return self.evaluations / self.seconds if self.seconds else 0.0

    def goals(self, spell: Callable[[str], str]) -> str:
        """The goals with the probabilities at the start, such as `lower Paris from 0.8`.

        `spell` writes a token.
        """
        if self.start is None:
            return ""
        aims = [("target", "lower"), ("wanted", "raise")]
        asked = [pair for pair in aims if self.start["objective"] in (pair[0], "both")]
        return ", ".join(
            f"{verb} {spell(self.start[name])} from {self.start[f'{name}_p']:.3g}"
            for name, verb in asked
        )

    def _row(self, table: str, row: Row) -> None:
        match table:
            case "baseline":
                self.start = row
            case "impacts":
                self._singles.append({**row, "ids": str(row["token_id"]), "text": row["token"]})
            case "sequences":
                self._rank([row])
                self._admit_singles([row["ids"], *row["parents"]])
            case "generations":
                self.generations.append(row)
                self._admit_singles([row["best_ids"]])
            case "best":
                self._rank([row])

    def _admit_singles(self, sequences: Sequence[str]) -> None:
        """Ranks the single tokens if one of the sequences consists of one token."""
        if self._singles and any(" " not in ids for ids in sequences):
            self._rank(self._singles)
            self._singles = []

    def _rank(self, rows: Sequence[Row]) -> None:
        known = {row["ids"]: row for row in [*self.best, *rows]}
        self.best = sorted(known.values(), key=_sort_key)[:_BEST]


def _sort_key(row: Row) -> tuple[float, int, tuple[int, ...]]:
    return sort_key(row["fitness"], tuple(map(int, row["ids"].split())))
