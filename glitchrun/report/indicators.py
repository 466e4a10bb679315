"""The indicators of a step's tokens: a file next to its ledger, and the metrics made from it.

Indicators depend on the model, not on verification. So they are not among the facts of a step:
`keep_indicators` writes them next to its ledger, and readers of a run join them by token id.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from glitchrun.events import Measured, Verified
from glitchrun.ledger.files import write_atomically
from glitchrun.ledger.record import StepRecord
from glitchrun.report.token_rows import facts_by_token
from glitchrun.report.writing import rounded
from glitchrun.spec.indicators import INDICATORS, LOWEST

FILE = "indicators.json"
_VERSION = 1


class _Reference(Protocol):
    ids: tuple[int, ...]
    source: str


class IndicatorSource(Protocol):
    """The part of `vocabulary.indicators.Indicators` that is used here. That module needs torch."""

    @property
    def main(self) -> str:
        """The indicator of Land and Bartolo's rule."""

    @property
    def tied(self) -> bool:
        """Whether the embeddings are tied."""

    @property
    def reference(self) -> Any:
        """The reference rows."""

    def threshold(self, name: str) -> float | None:
        """The value at or below which 2 % of the ordinary tokens are."""

    def of(self, ids: Sequence[int]) -> Mapping[str, Sequence[float | None]]:
        """Every indicator of tokens."""


@dataclass(frozen=True, slots=True)
class LongerTokens:
    """The longer tokens that contain a token."""

    count: int
    tokens: tuple[tuple[int, str], ...]
    """Id and text of some of them."""


@dataclass(frozen=True, slots=True)
class StepIndicators:
    """The indicators of the tokens that a step verified."""

    main: str
    """The indicator of Land and Bartolo's rule for this model."""
    tied: bool
    reference: str
    """How the reference rows were found, and how many there are."""
    thresholds: Mapping[str, float | None]
    """By indicator, the value at or below which 2 % of the ordinary tokens are."""
    values: Mapping[int, tuple[float | None, ...]]
    """By token id, the values in the order of `INDICATORS`."""
    longer: Mapping[int, LongerTokens] = field(default_factory=dict)
    """By the id of a severe token, the longer tokens that contain it."""
    unreachable: tuple[tuple[int, str, tuple[tuple[int, str], ...]], ...] = ()
    """Id and text of unreachable tokens, each with the tokens that its text is encoded to."""
    unreachable_count: int = 0
    """The number of unreachable tokens of the vocabulary."""

    def of(self, token_id: int) -> dict[str, float | None] | None:
        """The indicators of a token by name; None for a token that the step did not verify."""
        found = self.values.get(token_id)
        return None if found is None else dict(zip(INDICATORS, found, strict=True))


def indicator_data(
    indicators: IndicatorSource, ids: Sequence[int], relatives: Mapping[str, Any]
) -> dict[str, Any]:
    """The indicators of tokens, and related tokens, as `keep_indicators` writes them.

    Args:
        indicators: The indicators of the model.
        ids: The tokens.
        relatives: Related tokens, as `vocabulary.relatives.as_json` gives them.
    """
    ids = sorted(set(ids))
    reference = indicators.reference
    return {
        "version": _VERSION,
        "main": indicators.main,
        "tied": indicators.tied,
        "reference": {"source": reference.source, "ids": list(reference.ids)},
        "thresholds": {name: rounded(indicators.threshold(name)) for name in INDICATORS},
        "ids": ids,
        "values": {
            name: [rounded(value) for value in values]
            for name, values in indicators.of(ids).items()
        },
        **relatives,
    }


def keep_indicators(folder: Path, data: Mapping[str, Any]) -> None:
    """Writes `indicator_data` into the folder of a step's attempt.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(folder / FILE, json.dumps(data) + "\n")


def of_step(step: StepRecord) -> StepIndicators | None:
    """The indicators of a step's tokens; None if it has none, or they cannot be read."""
    if step.folder is None:
        return None
    try:
        changed = (step.folder / FILE).stat().st_mtime_ns
        return _read(step.folder / FILE, changed)
    except (
        OSError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return None  # written by a newer version, or damaged: the facts are intact without it


@lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> StepIndicators:
    data = json.loads(path.read_text(encoding="utf-8"))
    columns = [[*map(_number, data["values"][name])] for name in INDICATORS]
    rows = zip(data["ids"], zip(*columns, strict=True), strict=True)
    source, ids = data["reference"]["source"], data["reference"]["ids"]
    return StepIndicators(
        main=data["main"],
        tied=data["tied"],
        reference=source if ids else "none found",
        thresholds={name: _number(data["thresholds"][name]) for name in INDICATORS},
        values=dict(rows),
        longer={
            int(token_id): LongerTokens(int(found["count"]), _texts(found["tokens"]))
            for token_id, found in data.get("longer", {}).items()
        },
        unreachable=tuple(
            (int(token_id), str(text), _texts(instead))
            for token_id, text, instead in data.get("unreachable", {}).get("tokens", ())
        ),
        unreachable_count=int(data.get("unreachable", {}).get("count", 0)),
    )


def _number(value: Any) -> float | None:
    """A number, None if it is not finite. Raises TypeError or ValueError if it is no number."""
    return None if value is None or not isfinite(value) else float(value)


def _texts(tokens: Sequence[Any]) -> tuple[tuple[int, str], ...]:
    return tuple((int(token_id), str(text)) for token_id, text in tokens)


def indicator_metrics(step: StepRecord) -> Iterator[Measured]:
    """For each indicator, how well it separates severe tokens; nothing if no token is severe."""
    found = of_step(step)
    for name in INDICATORS if found else ():
        assert found is not None
        severe, other = groups(step, found, name)
        if not severe or (not other and found.thresholds[name] is None):
            continue
        n = len(severe) + len(other)
        if other:
            yield Measured(f"auc.{name}", auc(severe, other), n)
        threshold = found.thresholds[name]
        if threshold is not None:
            among = sum(value <= threshold for value in severe)
            yield Measured(f"lowest.{name}", among / len(severe), len(severe))


def groups(step: StepRecord, found: StepIndicators, name: str) -> tuple[list[float], list[float]]:
    """An indicator of the severe tokens of a step, and of its other verified tokens."""
    place = [*INDICATORS].index(name)
    severe: list[float] = []
    other: list[float] = []
    for token_id, (verified, _) in facts_by_token(step).items():
        value = found.values.get(token_id, (None,) * len(INDICATORS))[place]
        if isinstance(verified, Verified) and value is not None:
            (severe if verified.severe else other).append(value)
    return severe, other


def auc(severe: Sequence[float], other: Sequence[float]) -> float:
    """Probability that a value of `severe` is below one of `other`; a tie counts half.

    It is the statistic U of Mann and Whitney 1947, divided by the product of the sizes.
    """
    order = sorted(other)
    above = sum(
        2 * len(order) - bisect_left(order, value) - bisect_right(order, value) for value in severe
    )
    return above / (2 * len(severe) * len(order))


def percent_lowest() -> str:
    """The share of candidates by Land and Bartolo's rule, for captions."""
    return f"{100 * LOWEST:g} %"
