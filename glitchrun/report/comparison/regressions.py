"""Which metrics of the later sides of a comparison are worse than those of the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.behaviour.significance import ALPHA, shown_p
from glitchrun.errors import UsageError
from glitchrun.ledger.record import RunRecord, status_word
from glitchrun.report.comparison import Column, Section
from glitchrun.report.comparison.sides import Side
from glitchrun.report.formatting import MISSING, count, counted, figure, percent
from glitchrun.report.regression import (
    TEST,
    Change,
    Uncompared,
    changes,
    corrected,
    family_size,
    uncompared,
)
from glitchrun.report.writing import rounded


@dataclass(frozen=True, slots=True)
class Rule:
    """When a metric counts as worse."""

    tolerance: float = 0.0
    """A share of the first run's value."""
    significant: bool = False
    """Whether a paired test must show the difference too."""


@dataclass(frozen=True, slots=True)
class Regression:
    """Every metric with a better direction that the first run shares with another."""

    first: str
    """The name of the first run or study."""
    rule: Rule
    changes: tuple[Change, ...]
    missing: tuple[str, ...] = ()
    """Cells of the first study that the other one lacks, or the other way round."""
    uncompared: tuple[Uncompared, ...] = ()
    """The metrics that have a value on one side only."""

    @property
    def worse(self) -> list[Change]:
        """The metrics that regressed."""
        return [one for one in self.changes if self.regressed(one)]

    def regressed(self, change: Change) -> bool:
        """Whether the rule calls a change a regression."""
        worse = change.regressed(self.rule.tolerance)
        return worse and (change.significant or not self.rule.significant)

    @property
    def undecided(self) -> list[Uncompared]:
        """The metrics that may be worse, because only the first run has a value of them."""
        return [one for one in self.uncompared if one.undecided]

    @property
    def family(self) -> str:
        """The family of tests: `4 tests of this comparison`."""
        return f"{counted(family_size(self.changes), 'test')} of this comparison"

    def lines(self) -> Iterator[str]:
        """A line for each metric that regressed, and for each that is not decided."""
        for one in self.worse:
            yield f"regression in {one.side}: {one.sentence(self.family)}"
        for lost in self.undecided:
            yield f"not decided: {lost.sentence}; the first run has {figure(lost.left)}"

    def section(self) -> Section:
        """The metrics side by side, the regressions first."""
        rows = sorted(self.changes, key=lambda one: not self.regressed(one))
        columns = (
            Column("Metric", "key"),
            Column("Run", "key"),
            Column(self.first, "number"),
            Column("There", "number"),
            Column("Better is"),
            Column("Only here / only in " + self.first, "number"),
            Column("p", "number"),
            Column("p, adjusted", "number"),
            Column("Reading"),
        )
        return Section(
            "Regression",
            tuple(self._sentences()),
            columns,
            tuple(self._row(one) for one in rows),
        )

    def _sentences(self) -> Iterator[str]:
        worse = self.worse
        yield (
            f"{counted(len(worse), 'metric is', 'metrics are')} worse than in {self.first}: "
            + ", ".join(f"{one.metric} in {one.side}" for one in worse)
            + "."
            if worse
            else f"No metric is worse than in {self.first}."
        )
        if self.missing:
            cells = counted(len(self.missing), "cell is", "cells are")
            yield f"{cells} in one study alone, and not compared: {', '.join(self.missing)}."
        if self.undecided:
            lost = counted(len(self.undecided), "metric is", "metrics are")
            names = ", ".join(one.sentence for one in self.undecided)
            yield f"{lost} not decided, because only {self.first} has a value: {names}."
        if others := [one.sentence for one in self.uncompared if not one.undecided]:
            yield f"Not compared: {', '.join(others)}."
        allowed = f" by more than {percent(self.rule.tolerance)}" if self.rule.tolerance else ""
        shown = f", and the adjusted p is at most {ALPHA:g}" if self.rule.significant else ""
        yield f"A metric regresses if it is worse{allowed}{shown}. Speed and time do not count."
        yield (
            f"p: {TEST} of the verdicts on the tokens that both runs judged, two-sided; adjusted "
            f"by Benjamini and Hochberg over the family of {self.family}."
        )
        weak = {one.test.power for one in self.changes if one.test and one.test.power}
        yield from sorted(weak)

    def _row(self, one: Change) -> tuple[str, ...]:
        test = one.test
        reading = "worse" if one.worse_by > 0 else "better" if one.worse_by < 0 else "equal"
        if self.regressed(one):
            reading = "regression"
        return (
            one.metric,
            one.side,
            figure(one.left),
            figure(one.right),
            one.better,
            f"{count(test.only_right)} / {count(test.only_left)}" if test else MISSING,
            shown_p(test.p) if test else MISSING,
            MISSING if one.p_adjusted is None else shown_p(one.p_adjusted),
            reading,
        )

    def to_json(self) -> dict[str, Any]:
        """The regression as data."""
        return {
            "baseline": self.first,
            "tolerance": self.rule.tolerance,
            "significant": self.rule.significant,
            "test": TEST,
            "family": family_size(self.changes),
            "not_compared": list(self.missing),
            "undecided": [f"{one.side}:{one.metric}" for one in self.undecided],
            "uncompared": [
                {
                    "metric": one.metric,
                    "run": one.side,
                    "baseline": rounded(one.left),
                    "value": rounded(one.right),
                    "reason": one.reason,
                }
                for one in self.uncompared
            ],
            "regressed": [f"{one.side}:{one.metric}" for one in self.worse],
            "metrics": [
                {
                    "metric": one.metric,
                    "run": one.side,
                    "baseline": rounded(one.left),
                    "value": rounded(one.right),
                    "better": one.better,
                    "worse_by": rounded(one.worse_by),
                    "regressed": self.regressed(one),
                    "pairs": one.test.n if one.test else None,
                    "only_here": one.test.only_right if one.test else None,
                    "only_in_baseline": one.test.only_left if one.test else None,
                    "p": rounded(one.test.p) if one.test else None,
                    "p_adjusted": rounded(one.p_adjusted),
                    "power": one.test.power if one.test else "",
                }
                for one in self.changes
            ],
        }


def regression(sides: Sequence[Side], rule: Rule) -> Regression:
    """The metrics of the later sides against those of the first.

    Raises:
        UsageError: a side is a file, which has no metrics, a run is not finished, or no metric can
            be compared.
    """
    records = [side.record for side in sides]
    first = records[0]
    if first is None or None in records:
        raise UsageError("--fail-on compares the metrics of runs; a file has none")
    others = [
        (record, side.label)
        for side, record in zip(sides[1:], records[1:], strict=True)
        if record is not None
    ]
    found = [change for record, label in others for change in changes(first, record, label)]
    return Regression(
        sides[0].label,
        rule,
        _compared([first, *(record for record, _ in others)], found),
        uncompared=tuple(one for other in others for one in uncompared(first, *other)),
    )


def _compared(records: Sequence[RunRecord], found: Sequence[Change]) -> tuple[Change, ...]:
    """The changes between finished runs, with their tests adjusted as one family.

    Raises:
        UsageError: a run is not finished, so what it lacks would not count, or there is no change.
    """
    for record in records:
        if record.status != "FINISHED":
            raise UsageError(
                f"--fail-on compares finished runs; {record.identity.name} "
                f"{record.identity.key[:12]} is {status_word(record.status)}"
            )
    if not found:
        raise UsageError(
            "--fail-on: the runs share no metric that has a better direction; compare runs whose "
            "steps have the same ids"
        )
    return tuple(corrected(found))


def regression_of_studies(
    first: Mapping[str, RunRecord], second: Mapping[str, RunRecord], rule: Rule
) -> Regression:
    """The metrics of the cells of a study against those of the cells of the same names in an
    earlier one. All tests are one family.

    Args:
        first: The cells of the earlier study, by name.
        second: Those of the other one.
        rule: When a metric counts as worse.

    Raises:
        UsageError: a cell of both is not finished, or no metric can be compared.
    """
    both = [name for name in second if name in first]
    found = [change for name in both for change in changes(first[name], second[name], name)]
    records = [study[name] for name in both for study in (first, second)]
    missing = tuple(name for name in {**first, **second} if name not in both)
    lost = [one for name in both for one in uncompared(first[name], second[name], name)]
    return Regression("the baseline", rule, _compared(records, found), missing, tuple(lost))
