"""What has come of a genetic step so far, from its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from glitchrun.events import Batch

_BEST = 10

Row = Mapping[str, Any]


class SearchView:
    """Folds the batches of one step into what a picture of it shows."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.start: Row | None = None
        """The baseline; None until it is there."""
        self.generations: list[Row] = []
        self.best: list[Row] = []
        """The fittest sequences, best first: `text`, `fitness`, `target_p`, `wanted_p`."""
        self.evaluations = 0
        self.seconds = 0.0
        self.done = 0
        self.total: int | None = None
        self._singles: dict[str, Row] = {}

    def take(self, batch: Batch) -> None:
        self.done, self.total = batch.done, batch.total
        self.evaluations += batch.counters.get("evaluations", 0)
        self.seconds += batch.seconds
        for entry in batch.entries:
            self._row(entry.table, entry.cells)

    @property
    def rate(self) -> float:
        """Evaluations per second."""
        return self.evaluations / self.seconds if self.seconds else 0.0

    def goals(self, spell: Callable[[str], str]) -> str:
        """What is to fall and to rise, each token as `spell` writes it, and how likely it was."""
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
                self._singles[str(row["token_id"])] = {**row, "text": row["token"]}
            case "sequences":
                self._rank(row)
            case "generations":
                self.generations.append(row)
                if row["best_ids"] in self._singles:  # evaluated before the first population was
                    self._rank(self._singles.pop(row["best_ids"]))

    def _rank(self, row: Row) -> None:
        found = sorted([*self.best, row], key=lambda one: -one["fitness"])
        self.best = found[:_BEST]
