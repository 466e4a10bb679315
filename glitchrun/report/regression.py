"""One metric in two runs: which way is worse, and a paired test of the verdicts behind it.

A strategy declares in `x-metrics` which values of a metric are better: `higher`, `lower`, or
`fewer` for counts of tokens that fail. Fewer failures speak for a model; where a study compares
searches on one model, more of them speak for a search (`report/study.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from glitchrun.behaviour.significance import ALPHA, McNemar, adjusted, mcnemar, shown_p, stated_p
from glitchrun.events import Sampled, Verified
from glitchrun.ledger.record import Metric, RunRecord, StepRecord
from glitchrun.report.formatting import counted, figure, percent
from glitchrun.report.token_rows import facts_by_token
from glitchrun.spec.schema import fragments

_Verdict = Callable[[Verified | None, Sampled | None], bool | None]
_VERDICTS: Mapping[str, _Verdict] = {
    "glitch": lambda verified, _: verified.glitch if verified else None,
    "glitch_rate": lambda verified, _: verified.glitch if verified else None,
    "severe": lambda verified, _: verified.severe if verified else None,
    "confirmed": lambda _, sampled: sampled.confirmed if sampled else None,
}
"""The verdict on a token that each of these metrics counts."""
TEST = "exact McNemar test"
_COUNTED = ("share", "tokens", "pairs", "checks", "prompts", "bytes")
"""Units of metrics that cannot be negative."""


def better(step: StepRecord, name: str) -> str:
    """`higher`, `lower`, `fewer`, or empty for a metric without a better direction."""
    declared = fragments().get(step.strategy, {}).get("x-metrics", {}).get(name, {})
    return str(declared.get("better", ""))


def is_measured(step: StepRecord, name: str) -> bool:
    """Whether a metric depends on the clock or the machine."""
    declared = fragments().get(step.strategy, {}).get("x-metrics", {}).get(name, {})
    unit = str(declared.get("unit", ""))
    return bool(declared.get("measured")) or unit == "s" or unit.endswith("/s")


def possible_values(step: StepRecord, name: str) -> tuple[float, float]:
    """The least and the largest possible value of a metric, as far as its unit tells: a share lies
    between 0 and 1 unless it is declared as signed, and nothing is counted less than 0 times."""
    declared = fragments().get(step.strategy, {}).get("x-metrics", {}).get(name, {})
    unit = str(declared.get("unit", ""))
    if declared.get("signed") or (unit not in _COUNTED and not is_measured(step, name)):
        return -math.inf, math.inf
    return 0.0, 1.0 if unit == "share" else math.inf


def paired_test(metric: str, left: RunRecord, right: RunRecord) -> McNemar | None:
    """The test of the verdicts that a metric counts, on the tokens that both runs judged.

    None for a metric that counts no verdicts, and if the runs share no token.

    Args:
        metric: `STEP/NAME`.
        left: The earlier run.
        right: The other run.
    """
    step_id, _, name = metric.rpartition("/")
    verdict = _VERDICTS.get(name)
    steps = [next((s for s in run.steps if s.id == step_id), None) for run in (left, right)]
    if verdict is None or steps[0] is None or steps[1] is None:
        return None
    one, other = (_verdicts(step, verdict) for step in steps if step)
    common = [key for key in one if key in other]
    if not common:
        return None
    return mcnemar([one[key] for key in common], [other[key] for key in common])


def _verdicts(step: StepRecord, verdict: _Verdict) -> dict[tuple[int, str], bool]:
    """The verdict on each token, by its id and text: a new tokenizer may give an id to another."""
    found: dict[tuple[int, str], bool] = {}
    for verified, sampled in facts_by_token(step).values():
        value = verdict(verified, sampled)
        fact = verified or sampled
        if fact is not None and value is not None:
            found[fact.token.id, fact.token.text] = value
    return found


def described_test(test: McNemar, p_adjusted: float, family: str) -> str:
    """A test's result and what it cannot show, in sentences.

    Args:
        test: The test.
        p_adjusted: Its p, adjusted over the family.
        family: What the family is: `2 gates with a baseline`.
    """
    text = (
        f"{TEST} of {counted(test.n, 'paired verdict')}: {test.only_right:,} found only here, "
        f"{test.only_left:,} only in the baseline, {stated_p(test.p)}, "
        f"{shown_p(p_adjusted)} after Benjamini-Hochberg over {family}."
    )
    return f"{text} {test.power}".rstrip()


@dataclass(frozen=True, slots=True)
class Change:
    """A metric of two runs that has a better direction."""

    metric: str
    left: float
    right: float
    better: str
    test: McNemar | None
    p_adjusted: float | None = None
    """p of the test, adjusted over the family; None without a test."""
    side: str = ""
    """The right run, where there are several."""

    @property
    def worse_by(self) -> float:
        """How much worse the right side is, in the metric's unit; negative if it is better."""
        return self.left - self.right if self.better == "higher" else self.right - self.left

    def regressed(self, tolerance: float) -> bool:
        """Whether it is worse by more than `tolerance`, a share of the left value."""
        return self.worse_by > tolerance * abs(self.left) + 1e-12 * abs(self.left)

    @property
    def significant(self) -> bool:
        """Whether the adjusted test shows a difference."""
        return self.p_adjusted is not None and self.p_adjusted <= ALPHA

    def sentence(self, family: str) -> str:
        """The change in words, with its test."""
        share = f" ({percent(self.worse_by / abs(self.left))} worse)" if self.left else ""
        text = f"{self.metric}: {figure(self.left)} became {figure(self.right)}{share}"
        if self.test is None or self.p_adjusted is None:
            return f"{text}; no paired verdicts to test."
        return f"{text}; {described_test(self.test, self.p_adjusted, family)}"


@dataclass(frozen=True, slots=True)
class Uncompared:
    """A metric with a better direction that cannot be compared, mostly because one of two runs has
    no value of it."""

    metric: str
    left: float | None
    right: float | None
    reason: str
    """Why they cannot be compared."""
    side: str
    undecided: bool
    """Whether the right run may be worse: the left one has a value, and the right one lacks it for
    another reason than that there is nothing to count."""

    @property
    def sentence(self) -> str:
        """The metric, the run and the reason."""
        return f"{self.metric} in {self.side}: {self.reason}"


def uncompared(left: RunRecord, right: RunRecord, side: str) -> Iterator[Uncompared]:
    """The metrics that `changes` cannot compare.

    Args:
        left: The earlier run.
        right: The other run.
        side: Its name.
    """
    values = [dict(_directed(run)) for run in (left, right)]
    for name, (there, direction) in values[0].items():
        if not _is_known(there):
            continue
        here = values[1].get(name)
        if here and _is_known(here[0]) and _is_mean_of_others(name, direction, left, right):
            reason = f"{figure(there.value)} and {figure(here[0].value)}, of other tokens"
            yield Uncompared(name, there.value, here[0].value, reason, side, False)
        elif here is None:
            yield Uncompared(name, there.value, None, "not measured there", side, True)
        elif not _is_known(here[0]):
            empty = here[0].n == 0 and direction != "higher"
            reason = "no value there" + (", because it counts nothing" if empty else "")
            yield Uncompared(name, there.value, None, reason, side, not empty)
    for name, (here_only, _) in values[1].items():
        known = values[0].get(name)
        if _is_known(here_only) and (known is None or not _is_known(known[0])):
            reason = "no value in the first run" if known else "not measured in the first run"
            yield Uncompared(name, None, here_only.value, reason, side, False)


def _directed(run: RunRecord) -> Iterator[tuple[str, tuple[Metric, str]]]:
    """The metrics of a run that have a better direction, without those of speed and time, and the
    direction."""
    for step in run.steps:
        for name, metric in step.metrics.items():
            direction = better(step, name)
            if direction and not is_measured(step, name):
                yield f"{step.id}/{name}", (metric, direction)


def _is_mean_of_others(name: str, direction: str, left: RunRecord, right: RunRecord) -> bool:
    """Whether a metric is a mean over different tokens in two runs, as the mean ASR of the tokens
    that each of them found is. It may rise because fewer tokens fail; counts show which."""
    step_id, _, bare = name.rpartition("/")
    steps = [step for run in (left, right) for step in run.steps if step.id == step_id]
    if direction != "fewer" or bare in _VERDICTS or len(steps) < 2:
        return False
    declared = fragments().get(steps[0].strategy, {}).get("x-metrics", {}).get(bare, {})
    tokens = [{key for key, (_, sampled) in facts_by_token(step).items() if sampled}
              for step in steps]  # fmt: skip
    return declared.get("unit") == "share" and tokens[0] != tokens[1]


def _is_known(metric: Metric) -> bool:
    return metric.value is not None and math.isfinite(metric.value)


def changes(left: RunRecord, right: RunRecord, side: str = "") -> Iterator[Change]:
    """Every metric with a better direction that has a value in both runs, except those of speed and
    time. `uncompared` gives the others."""
    there = left.metrics
    for step in right.steps:
        for name, metric in step.metrics.items():
            full, direction = f"{step.id}/{name}", better(step, name)
            if not direction or is_measured(step, name) or full not in there:
                continue
            count = step.metrics.get("glitch") if name == "glitch_rate" else None
            if count is not None and there[full].n == metric.n:
                continue  # the count says the same
            values = there[full].value, metric.value
            comparable = not _is_mean_of_others(full, direction, left, right)
            if _is_known(there[full]) and _is_known(metric) and comparable:
                test = paired_test(full, left, right)
                yield Change(
                    full, float(values[0] or 0), float(values[1] or 0), direction, test, None, side
                )


def corrected(found: Sequence[Change]) -> list[Change]:
    """The changes with their tests adjusted as one family.

    Metrics that count the same verdicts (`glitch` and `glitch_rate`) are one test.
    """
    tests = {_identity(one): one.test for one in found if one.test is not None}
    ps = dict(zip(tests, adjusted([test.p for test in tests.values()]), strict=True))
    return [
        replace(one, p_adjusted=ps[_identity(one)]) if one.test is not None else one
        for one in found
    ]


def family_size(found: Sequence[Change]) -> int:
    """How many tests the family of `corrected` has."""
    return len({_identity(one) for one in found if one.test is not None})


def _identity(change: Change) -> tuple[str, str]:
    return change.side, change.metric.replace("/glitch_rate", "/glitch")
