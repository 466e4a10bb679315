"""A census over models: how many tokens each definition counts in each model, with intervals.

A definition is a set of probes, or a protocol, with a limit of probability; or the confirmation by
sampled attempts. Runs of one model in one arithmetic are one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.behaviour.significance import wilson
from glitchrun.events import SEVERE, Sampled, Verified
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.comparison import Column, Section
from glitchrun.report.figures.style import LIGHT, Drawing, new_figure, style
from glitchrun.report.formatting import MISSING, counted
from glitchrun.report.token_rows import facts_by_token
from glitchrun.report.totals import MILD
from glitchrun.report.writing import rounded
from glitchrun.spec.cell_names import value_texts
from glitchrun.spec.matrix_axes import canonical
from glitchrun.spec.probes import PROTOCOLS
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import STRATEGIES

CONFIRMED = "confirmed"
"""The definition by sampled attempts."""
_CHOSEN = "chosen by a search"
_NAMED = "named by the spec"
_SCOPE = "all in scope"
_RANDOM = "a random sample"


@dataclass(frozen=True, slots=True)
class Count:
    """The tokens of one model that a definition counts."""

    found: int
    n: int
    """Tokens to which the definition was applied."""
    how: str
    """How these tokens were chosen."""

    @property
    def text(self) -> str:
        """`311/48,821: 0.637 % (0.57–0.711)`; the interval is Wilson's, 95 %."""
        rate = wilson(self.found, self.n)
        value, low, high = (_percent(share) for share in (rate.value, rate.low, rate.high))
        return f"{self.found:,}/{self.n:,}: {value} % ({low}–{high})"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model in one arithmetic."""

    name: str
    arithmetic: str
    vocabulary: int | None
    scope: int | None
    """Tokens in the scope of its runs; None if they differ."""
    runs: tuple[str, ...]
    counts: Mapping[str, Count]
    """By definition."""


def census(records: Sequence[RunRecord]) -> list[ModelRow]:
    """A row for each model, in the order of the runs.

    Args:
        records: The runs. If several runs of a model applied a definition to a token, the last one
            counts.
    """
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        groups.setdefault(
            (str(record.identity.digests.get("model")), _arithmetic(record)), []
        ).append(record)
    names = value_texts(_path(group[-1]) for group in groups.values())
    return [_row(group, names[canonical(_path(group[-1]))]) for group in groups.values()]


def _arithmetic(record: RunRecord) -> str:
    model = record.model
    if model is None:
        return "?"
    return model.dtype if model.quantization == "none" else f"{model.quantization} ({model.dtype})"


def _path(record: RunRecord) -> str:
    return str((record.spec.get("model") or {}).get("path") or "?")


def _row(records: Sequence[RunRecord], name: str) -> ModelRow:
    last = records[-1]
    scopes = {_scope(record) for record in records}
    identities = [record.identity for record in records]
    return ModelRow(
        name=name,
        arithmetic=_arithmetic(last),
        vocabulary=last.model.vocabulary_size if last.model else None,
        scope=scopes.pop() if len(scopes) == 1 else None,
        runs=tuple(f"{one.name} {one.key[:12]}#{one.attempt}" for one in identities),
        counts=dict(_counts(records)),
    )


def _scope(record: RunRecord) -> int | None:
    if record.model is None or not record.model.categories:
        return None
    names = (record.spec.get("tokens") or {}).get("categories") or ["normal"]
    return sum(record.model.categories.get(name, 0) for name in names) - record.model.excluded


def _counts(records: Sequence[RunRecord]) -> Iterator[tuple[str, Count]]:
    verified: dict[str, dict[int, Verified]] = {}
    sampled: dict[int, Sampled] = {}
    how: dict[str, set[str]] = {}
    for record in records:
        for step in record.steps:
            chosen = _how(step, _scope(record))
            for token_id, (verdict, samples) in facts_by_token(step).items():
                if verdict:
                    label = _label(verdict)
                    verified.setdefault(label, {})[token_id] = verdict
                    how.setdefault(label, set()).add(chosen)
                if samples:
                    sampled[token_id] = samples
                    how.setdefault(CONFIRMED, set()).add(chosen)
    for label, facts in verified.items():
        together = ", ".join(sorted(how[label]))
        for name, found in _definitions(label, list(facts.values())).items():
            yield name, Count(found, len(facts), together)
    if sampled:
        found = sum(fact.confirmed for fact in sampled.values())
        yield CONFIRMED, Count(found, len(sampled), ", ".join(sorted(how[CONFIRMED])))


def _how(step: StepRecord, scope: int | None) -> str:
    """How a step's tokens were chosen."""
    strategy = STRATEGIES.get(step.strategy)
    if strategy and strategy.searches:
        if scope is not None and len(facts_by_token(step)) >= scope:
            return _SCOPE
        search = SEARCHES.get(step.params.get("search", ""))
        return _RANDOM if search is not None and search.random else _CHOSEN
    tokens = step.params.get("tokens")
    if not isinstance(tokens, Mapping):
        return _SCOPE
    return f"taken from {tokens['from']}" if "from" in tokens else _NAMED


def _label(verdict: Verified) -> str:
    """The protocol of a verdict, or its probes."""
    names = {*verdict.probes, *verdict.answers}
    known = [one.name for one in PROTOCOLS.values() if set(one.probes) == names]
    return known[0] if known else " + ".join(names)


def _definitions(label: str, facts: Sequence[Verified]) -> dict[str, int]:
    """How many of the tokens each definition counts, for one set of probes."""
    failed = [fact for fact in facts if fact.failed]
    found = {f"{label}: fails": len(failed)}
    if label in PROTOCOLS and PROTOCOLS[label].any:
        return found
    if any(fact.p == fact.p for fact in facts):
        limits = {limit: sum(fact.p < limit for fact in failed) for limit in (MILD, SEVERE)}
        found |= {f"{label}: p < {limit:g}": count for limit, count in limits.items()}
    return found


def definitions(rows: Sequence[ModelRow]) -> list[str]:
    """Every definition that a row has, in order. The rule of a protocol is left out if it counts
    the same tokens as a limit of probability for every model."""
    names = [*dict.fromkeys(name for row in rows for name in row.counts)]
    kept = [name for name in names if name != CONFIRMED and not _repeats(name, rows)]
    return [*kept, *([CONFIRMED] if CONFIRMED in names else [])]


def _repeats(name: str, rows: Sequence[ModelRow]) -> bool:
    label, _, rule = name.partition(": ")
    limit = f"{label}: p < {MILD:g}"
    pairs = [(row.counts.get(name), row.counts.get(limit)) for row in rows]
    return rule == "fails" and label in PROTOCOLS and all(one == other for one, other in pairs)


def census_section(records: Sequence[RunRecord]) -> Section:
    """The census as a table with its sentences, to be written as Markdown or HTML."""
    rows = census(records)
    names = definitions(rows)
    cells = [
        (
            row.name,
            row.arithmetic,
            MISSING if row.vocabulary is None else f"{row.vocabulary:,}",
            MISSING if row.scope is None else f"{row.scope:,}",
            *(row.counts[name].text if name in row.counts else MISSING for name in names),
        )
        for row in rows
    ]
    head = [Column("Model", "key"), Column("Arithmetic", "key")]
    head += [Column("Vocabulary", "number"), Column("In scope", "number")]
    head += [Column(name, "number") for name in names]
    return Section(
        f"Glitch tokens of {counted(len(rows), 'model')} by definition",
        tuple(_sentences(rows, names, records)),
        tuple(head),
        tuple(cells),
    )


def _sentences(
    rows: Sequence[ModelRow], names: Sequence[str], records: Sequence[RunRecord]
) -> Iterator[str]:
    yield (
        "Each cell: tokens that the definition counts, of those to which it was applied, and the "
        "share with Wilson's 95 % interval."
    )
    fails = [name.partition(":")[0] for name in names if name.endswith(": fails")]
    if fails:
        yield (
            "fails: fails the probes named before the colon, at any probability; a protocol by its "
            "own rule. p <: fails them, with a probability below the limit in each."
        )
    for label in dict.fromkeys(name.partition(":")[0] for name in names):
        if label in PROTOCOLS:
            yield f"{label}: {', '.join(PROTOCOLS[label].probes)} ({PROTOCOLS[label].source})."
    if CONFIRMED in names:
        limits = {(r.spec.get("thresholds") or {}).get("asr", 0.5) for r in records}
        shown = " or ".join(f"{100 * limit:g} %" for limit in sorted(limits))
        yield f"confirmed: at least {shown} of the sampled attempts failed."
    chosen: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, count in row.counts.items():
            if name in names and count.how not in (_SCOPE, _RANDOM):
                label = name.partition(":")[0]
                chosen.setdefault(f"{row.name}: {count.how}", {})[label] = None
    if chosen:
        yield (
            "An interval describes a vocabulary only if all its tokens in scope, or a random "
            "sample of them, were verified. Elsewhere it describes the tokens verified:"
        )
    for what, labels in chosen.items():
        yield f"{what} ({', '.join(labels)})."


def census_json(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The census as JSON-ready data: `models`, each with its counts by definition."""
    rows = census(records)
    names = definitions(rows)
    return {
        "definitions": names,
        "models": [
            {
                "name": row.name,
                "arithmetic": row.arithmetic,
                "vocabulary": row.vocabulary,
                "scope": row.scope,
                "runs": list(row.runs),
                "counts": {
                    name: _count_json(row.counts[name]) for name in names if name in row.counts
                },
            }
            for row in rows
        ],
    }


def _count_json(count: Count) -> dict[str, Any]:
    rate = wilson(count.found, count.n)
    return {
        "found": count.found,
        "of": count.n,
        "share": rounded(rate.value),
        "low": rounded(rate.low),
        "high": rounded(rate.high),
        "chosen": count.how,
    }


def draw_census(rows: Sequence[ModelRow]) -> Drawing | None:
    """The share of each definition in each model, with Wilson's intervals. Needs `style`."""
    names = definitions(rows)
    if not names:
        return None
    figure = new_figure((6.4, 1.2 + 0.16 * len(names) * (len(rows) + 1)))
    axes = figure.subplots()
    marks = ("o", "s", "^", "D", "v", "P", "X", "*")
    colours = [LIGHT[name] for name in ("accent", "glitch", "good", "confirmed", "open", "muted")]
    labelled = set[int]()
    for number, row in enumerate(rows):
        for place, name in enumerate(names):
            if name not in row.counts:
                continue
            count = row.counts[name]
            rate = wilson(count.found, count.n)
            errors = [[100 * max(0.0, rate.value - rate.low)], [100 * (rate.high - rate.value)]]
            y = place + 0.7 * ((number + 0.5) / len(rows) - 0.5)
            look = {"color": colours[number % len(colours)], "ms": 4, "lw": 1.2, "capsize": 2}
            shown = None if number in labelled else f"{row.name}, {row.arithmetic}"
            labelled.add(number)
            fmt = marks[number % len(marks)]
            axes.errorbar(100 * rate.value, y, xerr=errors, fmt=fmt, label=shown, **look)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("share of the tokens to which the definition was applied (%)")
    figure.legend(loc="outside upper right", fontsize=8, ncols=2)
    caption = "Shares of the table, with Wilson's 95 % interval."
    return Drawing("census", "Shares by definition and model", caption, figure)


def census_page(records: Sequence[RunRecord]) -> str:
    """The census as a self-contained HTML page.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    from glitchrun.report.html import render_page

    rows = census(records)
    with style():
        drawn = draw_census(rows)
        return render_page(
            "comparison.html.j2",
            [drawn] if drawn else [],
            above="",
            description="",
            noun="models" if len(rows) != 1 else "model",
            title="Census of glitch tokens",
            legend=[
                (str(number), row.name, f"{row.name}, {row.arithmetic}: {', '.join(row.runs)}")
                for number, row in enumerate(rows, 1)
            ],
            sections=[census_section(records)],
        )


def _percent(share: float) -> str:
    """Per cent with three significant digits."""
    return f"{100 * share:.3g}" if share < 0.1 else f"{100 * share:.1f}"
