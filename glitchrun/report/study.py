"""A study: the cells of a matrix as one result.

`Study` groups the cells by seed and by setting; `study_sections.py` shows it, `study_files.py`
writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from math import inf, isfinite
from statistics import median
from typing import Any

from glitchrun.behaviour.significance import McNemar, Mean, adjusted, mean
from glitchrun.ledger.record import RunRecord
from glitchrun.report.comparison.matching import matched_cells
from glitchrun.report.comparison.pairs import Counts, Overlap
from glitchrun.report.comparison.results import Result, metrics
from glitchrun.report.comparison.sides import Side, TokenVerdict, side_of_run, with_verdicts
from glitchrun.report.formatting import MISSING
from glitchrun.report.regression import better, possible_values
from glitchrun.spec.cell_names import value_texts
from glitchrun.spec.matrix_axes import canonical

SEED = "seed"
_FIRST = ("confirmed", "glitch", "severe", "asr_mean", "glitch_rate", "recall_low")
"""Metrics that come first, in this order."""
Setting = tuple[tuple[str, str], ...]
"""Axis and value as text, for every axis but `seed`."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of the cells, with the values that are better."""

    result: Result
    better: str
    """`higher`, `lower`, or empty where neither is better, or it is not clear."""
    counts: tuple[int | None, ...]
    """For each cell the number of items that its value is based on."""
    label: str
    """Its name for people, without the step where no other step has it."""
    possible: tuple[float, float] = (-inf, inf)
    """The least and the largest possible value."""
    uneven: bool = False
    """Whether it counts failing tokens among different tokens, so that the counts cannot be
    compared. Searches are compared by what they find, wherever they look."""

    @property
    def best(self) -> list[int]:
        """Places of the cells with the best value; empty if no value is better or all are equal."""
        return places_of_best(self.result.values, self.better)


def places_of_best(values: Sequence[float | None], direction: str) -> list[int]:
    """Places of the best values: several if they tie, none if all are equal or none is better."""
    known = {round(value, 12) for value in values if value is not None}
    if not direction or len(known) < 2:
        return []
    best = max(known) if direction == "higher" else min(known)
    return [i for i, value in enumerate(values) if value is not None and round(value, 12) == best]


@dataclass(frozen=True, slots=True)
class Repeats:
    """The cells of one setting, which differ in the seed alone."""

    setting: Setting
    places: tuple[int, ...]
    """Places of its cells."""

    @property
    def name(self) -> str:
        """`quantization=int4, template=raw`; `all cells` if only the seed varies."""
        return ", ".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in self.setting) or (
            "all cells"
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A token in one value of an axis, over the seeds of one setting."""

    found: int
    judged: int
    """Cells with a verdict on it."""
    p: float | None
    """Median probability over these cells."""
    asr: float | None
    """Mean attack success rate over these cells."""

    @property
    def verdict(self) -> bool | None:
        """The verdict of most seeds; None without a majority."""
        return None if 2 * self.found == self.judged else 2 * self.found > self.judged


@dataclass(frozen=True, slots=True)
class Flip:
    """A token whose verdict depends on the value of an axis, all other settings being equal."""

    token: TokenVerdict
    others: Setting
    """The other settings."""
    by_value: Mapping[str, Seen]


@dataclass(frozen=True, slots=True)
class ValuePair:
    """Two values of an axis, all other settings being equal, on the tokens that both judged."""

    axis: str
    left: str
    right: str
    others: Setting
    counts: Counts

    @property
    def test(self) -> McNemar:
        """McNemar's exact test of the verdicts."""
        return McNemar(self.counts.n, self.counts.only_left, self.counts.only_right)

    @property
    def overlap(self) -> Overlap:
        """The tokens found with both values, against two random sets of the same sizes."""
        counts = self.counts
        left, right = counts.both + counts.only_left, counts.both + counts.only_right
        return Overlap("found with both", left, right, counts.both, counts.n)


class Study:
    """The cells of a matrix: runs of one experiment."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        """`records`: the runs of the cells, two or more, in order."""
        self.records = list(records)
        made = matched_cells([side_of_run("", record) for record in records])
        finished = [side for side in made if side.record and side.record.status == "FINISHED"]
        self.by = with_verdicts(finished or made, None)[0]
        """The kind of verdict that is compared: see `sides.with_verdicts`."""
        self.sides: list[Side] = with_verdicts(made, self.by)[1]

    @property
    def experiment(self) -> str:
        """The name of the experiment."""
        return self.records[0].identity.experiment

    @cached_property
    def _texts(self) -> dict[str, dict[str, str]]:
        """For each axis the texts of its values, by the values as JSON."""
        found: dict[str, list[Any]] = {}
        for record in self.records:
            for axis, value in record.identity.assignments.items():
                found.setdefault(axis, []).append(value)
        missing = canonical(None)
        return {
            axis: {key: MISSING if key == missing else text for key, text in texts.items()}
            for axis, texts in ((axis, value_texts(values)) for axis, values in found.items())
        }

    @property
    def axes(self) -> dict[str, list[str]]:
        """The values of each axis as text, in the order of the cells; only axes that vary."""
        return {axis: [*texts.values()] for axis, texts in self._texts.items() if len(texts) > 1}

    @property
    def by_text(self) -> bool:
        """Whether tokens are matched by their text, because the cells have different
        vocabularies."""
        return any(side.by_text for side in self.sides)

    def value(self, place: int, axis: str) -> str:
        """The value of an axis in a cell, as text."""
        value = self.records[place].identity.assignments.get(axis)
        return self._texts.get(axis, {}).get(canonical(value), MISSING)

    @property
    def settings(self) -> list[str]:
        """The axes that vary, except the seed."""
        return [axis for axis in self.axes if axis != SEED]

    @cached_property
    def groups(self) -> list[Repeats]:
        """The cells by setting, in the order of their first cells."""
        found: dict[Setting, list[int]] = {}
        for place in range(len(self.records)):
            setting = tuple((axis, self.value(place, axis)) for axis in self.settings)
            found.setdefault(setting, []).append(place)
        return [Repeats(setting, tuple(places)) for setting, places in found.items()]

    @property
    def repeats(self) -> bool:
        """Whether a setting has several seeds."""
        return any(len(group.places) > 1 for group in self.groups)

    @property
    def fewer(self) -> str:
        """Which counts of failing tokens are better: `lower` where cells differ in the model or how
        it is asked, `higher` where they differ in the steps that search, empty for a mixture."""
        searching = [axis.startswith("steps.") for axis in self.settings]
        if not searching or "thresholds" in {axis.split(".")[0] for axis in self.settings}:
            return ""
        if all(searching):
            return "higher"
        return "" if any(searching) else "lower"

    @cached_property
    def measures(self) -> list[Measure]:
        """The metrics with a better direction, the main results first."""
        every = metrics(self.sides)
        bare = Counter(result.name.rpartition("/")[2] for result in every)
        found = [self._measure(result, bare) for result in every]
        kept = {one.result.name: one for one in found if one is not None}
        for name in [name for name in kept if name.endswith("/glitch_rate")]:
            count = kept.get(name.replace("/glitch_rate", "/glitch"))
            if count is not None and not count.uneven:
                del kept[name]  # it says the same as the count
        return sorted(kept.values(), key=lambda one: _order(one.result.name))

    def _measure(self, result: Result, times: Mapping[str, int]) -> Measure | None:
        known = (
            value if value is not None and isfinite(value) else None for value in result.values
        )
        result = replace(result, values=tuple(known))
        step_id, _, name = result.name.rpartition("/")
        steps = [step for record in self.records for step in record.steps if step.id == step_id]
        direction = next(filter(None, (better(step, name) for step in steps)), "")
        if not direction:
            return None
        counts = tuple(
            side.metrics[result.name].n if result.name in side.metrics else None
            for side in self.sides
        )
        fewer = direction == "fewer"
        uneven = fewer and (
            len({n for n in counts if n is not None}) > 1
            or (
                self.fewer == "lower"
                and len({side.judged for side in self.sides if side.tokens}) > 1
            )
        )
        if fewer:
            direction = "" if uneven else self.fewer
        shown = name if times[name] == 1 else f"{step_id} {name}"
        possible = next(possible_values(step, name) for step in steps)
        return Measure(result, direction, counts, shown.replace("_", " "), possible, uneven)

    def means(self, measure: Measure) -> list[Mean | None]:
        """The mean of a metric over the seeds of each group; None for a group without a value."""
        found = []
        for group in self.groups:
            values = [measure.result.values[place] for place in group.places]
            known = [float(value) for value in values if value is not None]
            found.append(mean(known, possible=measure.possible) if known else None)
        return found

    def best_groups(self, measure: Measure) -> list[int]:
        """Places of the groups with the best mean; empty where other seeds might order the groups
        otherwise: an interval contains a mean of another group, or two means have no interval,
        because their seeds agree, although the seed decides what is measured."""
        means = self.means(measure)
        best = places_of_best([one.value if one else None for one in means], measure.better)
        others = [one for place, one in enumerate(means) if one and place not in best]
        apart = self.is_fixed(measure)
        for leader in (means[place] for place in best):
            if leader is None or not all(_are_apart(leader, one, apart) for one in others):
                return []
        return best

    def is_fixed(self, measure: Measure) -> bool:
        """Whether the seed cannot change a metric: the seeds of a setting share the step."""
        step_id = measure.result.name.rpartition("/")[0]
        by_group = (
            [step.key for place in group.places for step in self.records[place].steps
             if step.id == step_id]
            for group in self.groups
        )  # fmt: skip
        return all(len(keys) < 2 or (len({*keys}) == 1 and keys[0]) for keys in by_group)

    # Tokens, of the cells that are finished

    def finished(self, group: Repeats) -> list[int]:
        """Places of the cells of a group that are finished."""
        return [place for place in group.places if self.records[place].status == "FINISHED"]

    def seen(self, group: Repeats) -> dict[int, Seen]:
        """Each token that a finished cell of the group judged, over the group's seeds."""
        by_token: dict[int, list[TokenVerdict]] = {}
        for place in self.finished(group):
            for key, one in self.sides[place].tokens.items():
                if one.found is not None:
                    by_token.setdefault(key, []).append(one)
        return {key: _seen(found) for key, found in by_token.items()}

    @cached_property
    def judged(self) -> tuple[int, int]:
        """Tokens that every cell judged, and that any cell judged."""
        places = [place for group in self.groups for place in self.finished(group)]
        found = [self.sides[place].judged for place in places if self.sides[place].tokens]
        if not found:
            return 0, 0
        return len(frozenset.intersection(*found)), len(frozenset.union(*found))

    @property
    def seeds_choose(self) -> bool:
        """Whether the cells of a setting judged different tokens, as searches that draw do."""
        return any(
            len({self.sides[place].judged for place in self.finished(group)}) > 1
            for group in self.groups
        )

    @cached_property
    def _all_seen(self) -> dict[Setting, dict[int, Seen]]:
        return {group.setting: self.seen(group) for group in self.groups}

    def _contexts(self, axis: str) -> dict[Setting, dict[str, dict[int, Seen]]]:
        """For each combination of the other settings, the tokens by the value of `axis`."""
        found: dict[Setting, dict[str, dict[int, Seen]]] = {}
        for setting, tokens in self._all_seen.items():
            others = tuple(pair for pair in setting if pair[0] != axis)
            found.setdefault(others, {})[dict(setting)[axis]] = tokens
        return found

    def flips(self, axis: str) -> list[Flip]:
        """Tokens that most seeds find with one value of `axis` and do not find with another, all
        other settings being equal: those that most settings agree on first, then by probability."""
        found = []
        for others, by_value in self._contexts(axis).items():
            for key in dict.fromkeys(key for tokens in by_value.values() for key in tokens):
                seen = {value: tokens[key] for value, tokens in by_value.items() if key in tokens}
                if {True, False} <= {one.verdict for one in seen.values()}:
                    found.append(Flip(self._token(key), others, seen))
        times = Counter(flip.token.id for flip in found)
        return sorted(found, key=lambda flip: (-times[flip.token.id], flip.token.id, flip.others))

    def _token(self, key: int) -> TokenVerdict:
        return next(side.tokens[key] for side in self.sides if key in side.tokens)

    @cached_property
    def pairs(self) -> list[ValuePair]:
        """Every two values of every axis but the seed, all other settings being equal.

        A token counts once: with the verdict of most seeds. Counting it once for each seed would
        make a few tokens look like many.
        """
        return [pair for axis in self.settings for pair in self._pairs(axis)]

    def _pairs(self, axis: str) -> Iterator[ValuePair]:
        for others, by_value in self._contexts(axis).items():
            for left, right in combinations(by_value, 2):
                one, other = by_value[left], by_value[right]
                verdicts = [(one[key].verdict, other[key].verdict) for key in one if key in other]
                judged = [pair for pair in verdicts if None not in pair]
                kinds = ((True, True), (True, False), (False, True), (False, False))
                if judged:
                    counts = Counts(*(judged.count(kind) for kind in kinds))
                    yield ValuePair(axis, left, right, others, counts)

    @cached_property
    def adjusted(self) -> list[float]:
        """p of the test of each pair, adjusted over all pairs of the study as one family."""
        return adjusted([pair.test.p for pair in self.pairs])

    def stability(self, group: Repeats) -> tuple[int, int, int]:
        """Tokens of a group that every seed finds, that only some find, and that none does, of
        those that all its seeds judged."""
        whole = [one for one in self._all_seen[group.setting].values()
                 if one.judged == len(self.finished(group))]  # fmt: skip
        every = sum(one.found == one.judged for one in whole)
        none = sum(one.found == 0 for one in whole)
        return every, len(whole) - every - none, none


def _are_apart(one: Mean, other: Mean, without_interval: bool) -> bool:
    """Whether neither interval contains the other mean; `without_interval` if there is none."""
    half = max(one.half or 0.0, other.half or 0.0)
    return abs(one.value - other.value) > half if half else without_interval


def _seen(found: Sequence[TokenVerdict]) -> Seen:
    ps = [one.p for one in found if one.p is not None]
    rates = [one.asr for one in found if one.asr is not None]
    return Seen(
        sum(bool(one.found) for one in found),
        len(found),
        median(ps) if ps else None,
        sum(rates) / len(rates) if rates else None,
    )


def _order(name: str) -> tuple[int, str]:
    bare = name.rpartition("/")[2]
    return (_FIRST.index(bare) if bare in _FIRST else len(_FIRST), name)
