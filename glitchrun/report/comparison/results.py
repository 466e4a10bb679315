"""The results of runs side by side: the first table of a comparison, and the last of a matrix.

`results` has a row for each side; `metric_rows` a row for each metric. All numbers of one metric
have one unit. `cells_json` is the same for `apply -o json`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.events import SEVERE
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.comparison.sides import Side, side_of_run, with_verdicts
from glitchrun.report.formatting import counted, in_one_unit
from glitchrun.report.headline import declared_headline
from glitchrun.report.writing import rounded
from glitchrun.spec.schema import fragments

_ABOUT_TOKENS = {
    "false_alarm_rate": "false alarms",
    "recall_low": "recall, at least",
}
"""Metrics of steps about tokens that are shown in addition to the counts, with their labels."""
_NAMED = 3
"""Sides that tie and are named; more are counted."""


@dataclass(frozen=True, slots=True)
class Result:
    """One of the main results, with its value on each side."""

    name: str
    """`confirmed`, `glitch`, ..., or the full name of a metric."""
    label: str
    """Its name for people, without the unit."""
    unit: str
    values: tuple[float | None, ...]

    @property
    def head(self) -> str:
        """The label with the unit of the column, if it has one."""
        unit = in_one_unit(self.values, self.unit)[0]
        implied = unit in ("", "tokens", self.label) or self.label.endswith(" per second")
        return self.label if implied else f"{self.label} ({unit})"

    @property
    def texts(self) -> list[str]:
        """The values as numbers in that unit."""
        return in_one_unit(self.values, self.unit)[1]


def results(sides: Sequence[Side]) -> list[Result]:
    """The main results of the sides: counts of tokens, then the metrics that the strategies of
    their steps declare; without those that no side has."""
    found = [*_counts(sides), *_declared(sides)]
    return [one for one in found if any(value is not None for value in one.values)]


def _counts(sides: Sequence[Side]) -> Iterator[Result]:
    counts: dict[str, Callable[[Side], float | None]] = {
        "verified": lambda side: len(side.verified) or None,
        "glitch": lambda side: _number(one.glitch for one in side.verified),
        "severe": lambda side: _severe(side),
        "sampled": lambda side: len(side.sampled) or None,
        "confirmed": lambda side: _number(one.confirmed for one in side.sampled),
    }
    for name, count in counts.items():
        yield Result(name, name, "tokens", tuple(map(count, sides)))
    examined = tuple(side.looked_at for side in sides)
    if any(side.looked_at != len(side.verified) for side in sides if side.kind == "file"):
        yield Result("examined", "examined", "tokens", examined)
    if any(side.lists_findings for side in sides):
        listed = tuple(len(side.tokens) if side.lists_findings else None for side in sides)
        yield Result("listed", "listed", "tokens", listed)


def _number(verdicts: Any) -> int | None:
    found = list(verdicts)
    return sum(map(bool, found)) if found else None


def _severe(side: Side) -> int | None:
    if not side.verified or side.record is None:
        return None
    return sum(bool(one.glitch) and one.p is not None and one.p < SEVERE for one in side.verified)


def _declared(sides: Sequence[Side]) -> Iterator[Result]:
    names: dict[str, tuple[str, str]] = {}
    for side in sides:
        for step in side.record.steps if side.record else ():
            for name in _leading(step):
                names.setdefault(f"{step.id}/{name}", (name, _unit(step, name)))
    plain = [name for name, _ in names.values()]
    for full, (name, unit) in names.items():
        bare = name.removesuffix("_bytes").removesuffix("_seconds")  # the unit says so
        label = _ABOUT_TOKENS.get(name, bare.replace("_", " "))
        if plain.count(name) > 1:
            label = f"{full.rpartition('/')[0]} {label}"
        yield Result(full, label, unit, values_of(sides, full))


def _leading(step: StepRecord) -> list[str]:
    """The metrics of a step that come first, without its id."""
    declared = declared_headline(step)
    if declared:
        return [*dict.fromkeys((declared["metric"], *declared.get("cards", ())))]
    return [name for name in _ABOUT_TOKENS if name in step.metrics]


def _unit(step: StepRecord, name: str) -> str:
    declared = fragments().get(step.strategy, {}).get("x-metrics", {})
    unit: str = declared.get(name, {}).get("unit", "")
    return unit


def values_of(sides: Sequence[Side], name: str) -> tuple[float | None, ...]:
    """The values of a metric, one for each side."""
    return tuple(side.metrics[name].value if name in side.metrics else None for side in sides)


def metrics(sides: Sequence[Side]) -> list[Result]:
    """Every metric that a side has: the leading ones first, then in the order of the steps."""
    units = {"model/load_seconds": "s", "model/bytes": "bytes", "model/peak_bytes": "bytes"}
    for side in sides:
        for step in side.record.steps if side.record else ():
            units |= {f"{step.id}/{name}": _unit(step, name) for name in step.metrics}
    found = {name: None for side in sides for name in side.metrics}
    first = [one.name for one in results(sides) if one.name in found]
    every = [
        Result(name, name, units.get(name, ""), values_of(sides, name))
        for name in dict.fromkeys([*first, *found])
    ]
    return [one for one in every if any(value is not None for value in one.values)]


def leader_sentence(sides: Sequence[Side]) -> str | None:
    """Which side has the highest main result, and which sides tie; None without one."""
    found = {one.name: one for one in results(sides)}
    best = next((found[name] for name in ("confirmed", "glitch") if name in found), None)
    best = best or next(iter(found.values()), None)
    if best is None:
        return None
    text = dict(zip([side.title for side in sides], best.texts, strict=True))
    known = {
        side.title: value
        for side, value in zip(sides, best.values, strict=True)
        if value is not None
    }
    if len(known) < 2:
        return None
    top, least = max(known.values()), min(known.values())
    ahead = [title for title, value in known.items() if value == top]
    if top == least:
        both = "Both" if len(known) == 2 else f"All {len(known)}"
        return f"{both} tie: {best.head} = {text[ahead[0]]}."
    last = [title for title, value in known.items() if value == least]
    tie = "Tie for the highest" if len(ahead) > 1 else "Highest"
    return (
        f"{tie} {best.head}: {text[ahead[0]]} ({_listed(ahead)}); "
        f"lowest: {text[last[0]]} ({_listed(last)})."
    )


def _listed(titles: Sequence[str]) -> str:
    if len(titles) > _NAMED:
        return counted(len(titles), "run")
    return " and ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))


def seconds(record: RunRecord) -> float:
    """Seconds that a run spent in loading the model and in its steps."""
    return record.loading_seconds + sum(step.own_seconds for step in record.steps)


def gates_cell(record: RunRecord) -> str:
    """The gates of a run in few words: `2 pass`, `1 of 2 fail`; empty without gates."""
    outcomes = [gate.outcome for gate in record.gates]
    if not outcomes:
        return ""
    worst = next(word for word in ("fail", "inconclusive", "pass") if word in outcomes)
    number = outcomes.count(worst)
    return (
        f"{number} {worst}" if number == len(outcomes) else f"{number} of {len(outcomes)} {worst}"
    )


# The end of `apply` on a matrix


def cells_of(records: Sequence[RunRecord]) -> list[Side]:
    """The cells of a matrix as sides."""
    return with_verdicts([side_of_run("", record) for record in records], None)[1]


def compare_command(records: Sequence[RunRecord]) -> str:
    """The command that compares the cells of a matrix."""
    return f"glitchrun compare {shlex.quote(records[0].identity.experiment)}"


def cells_json(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The results of a matrix as JSON-ready data: its cells, and the command that compares them."""
    sides = cells_of(records)
    found = results(sides)
    cells = [
        {
            "name": record.identity.name,
            "key": record.identity.key,
            "assignments": dict(record.identity.assignments),
            "status": record.status,
            "gates": dict(Counter(gate.outcome for gate in record.gates)),
            "results": {one.name: _plain(one.values[place]) for one in found},
            "seconds": rounded(seconds(record)),
        }
        for place, record in enumerate(records)
    ]
    return {"cells": cells, "compare": compare_command(records)}


def _plain(value: float | None) -> float | None:
    return value if isinstance(value, int) else rounded(value)
