"""A study for people: sections of sentences and tables, and figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from glitchrun.behaviour.significance import ALPHA, Mean, pairs_needed, shown_p
from glitchrun.ledger.record import status_word
from glitchrun.report.comparison import Column, Section
from glitchrun.report.comparison.results import gates_cell, seconds
from glitchrun.report.comparison.token_sections import meaning
from glitchrun.report.figures.style import LIGHT, Drawing, label, new_figure
from glitchrun.report.formatting import (
    MISSING,
    count,
    counted,
    duration,
    figure,
    in_one_unit,
    percent,
    probability,
)
from glitchrun.report.study import Flip, Measure, Seen, Setting, Study

_SHOWN = 10
"""Metrics in a table; study.json has all of them."""
_PANELS = 6
_BEST, _TIED = "★", "★="


def sections(study: Study, tokens: int | None = 50) -> Iterator[Section]:
    """The sections of a study: the cells, means over seeds, agreement, and tokens that flip.

    Args:
        study: The study.
        tokens: Rows of each table of tokens; None for all.
    """
    if study.repeats:
        yield _means(study)
    yield _cells(study)
    if study.repeats:
        yield _stability(study)
    if study.pairs:
        yield _agreement(study)
    for axis in study.settings:
        yield from _flips(study, axis, tokens)


def _short(axis: str) -> str:
    return axis.rpartition(".")[2]


def _named(setting: Setting) -> str:
    return ", ".join(f"{_short(axis)}={value}" for axis, value in setting) or "all cells"


# Cells


def _cells(study: Study) -> Section:
    """A row for each cell: its values, its results with the best marked, gates and time."""
    shown = study.measures[:_SHOWN]
    columns = [Column(_short(axis), "key") for axis in study.axes]
    rows = range(len(study.records))
    cells = [[study.value(place, axis) for place in rows] for axis in study.axes]
    for measure in shown:
        unit = in_one_unit(measure.result.values, measure.result.unit)[0]
        columns.append(Column(_head(measure, unit), "number"))
        marks = _marks(measure.best)
        cells.append([f"{text}{marks(i)}" for i, text in enumerate(measure.result.texts)])
    gates = [gates_cell(record) for record in study.records]
    columns += [Column("gates", "key"), Column("time", "number"), Column("status", "key")]
    times = [duration(seconds(record)) for record in study.records]
    states = [status_word(record.status) for record in study.records]
    cells += [gates, times, ["" if state == "FINISHED" else state for state in states]]
    kept = [place for place, column in enumerate(cells) if any(column)]
    return Section(
        f"{counted(len(study.records), 'cell')}",
        tuple(_cell_sentences(study, shown)),
        tuple(columns[place] for place in kept),
        tuple(zip(*(cells[place] for place in kept), strict=True)),
    )


def _marks(best: Sequence[int]) -> Callable[[int], str]:
    sign = _BEST if len(best) == 1 else _TIED
    return lambda place: f" {sign}" if place in best else ""


def _cell_sentences(study: Study, shown: Sequence[Measure]) -> Iterator[str]:
    if any(one.best for one in shown):
        yield f"{_BEST}: the best cell of a column. {_TIED}: cells that tie for the best."
    if not study.repeats:
        yield from _directions(study, shown)
    common, union = study.judged
    if common < union:
        yield (
            f"{common:,} of the {counted(union, 'token')} were judged by every cell: the cells "
            "examined different tokens, so their counts also differ by that."
        )
    equal = [one.label for one in shown if len(set(one.result.values)) == 1]
    if equal and len(study.records) > 1:
        yield f"Equal in all cells: {', '.join(equal)}."
    hidden = len(study.measures) - len(shown)
    if hidden > 0:
        yield f"study.json has {counted(hidden, 'further metric')}."


def _directions(study: Study, shown: Sequence[Measure]) -> Iterator[str]:
    """Which values are better."""
    marked = [one for one in shown if one.best]
    less = [one.label for one in marked if one.better == "lower"]
    more = [one.label for one in marked if one.better == "higher"]
    if less:
        yield f"Less is better: {', '.join(less)}."
    if more:
        yield f"More is better: {', '.join(more)}."
    if study.fewer == "lower":
        yield (
            "Fewer glitch tokens count as better, because the cells differ in the model or in how "
            "it is asked, not in the search."
        )
    elif study.fewer == "higher":
        yield (
            "More tokens found count as better, because the cells differ in the search, not in the "
            "model."
        )
    uneven = [one.label for one in shown if one.uneven]
    if uneven:
        yield (f"Based on different tokens, and so not comparable as counts: {', '.join(uneven)}.")


# Repeats


def _means(study: Study) -> Section:
    """A row for each setting: the mean of each metric over its seeds."""
    shown = study.measures[:_SHOWN]
    columns = [Column(_short(axis), "key") for axis in study.settings] or [Column("", "key")]
    columns.append(Column("seeds", "number"))
    values = [[value for _, value in group.setting] or [group.name] for group in study.groups]
    cells: list[list[str]] = []
    for measure in shown:
        means = study.means(measure)
        marks = _marks(study.best_groups(measure))
        unit, texts = _mean_texts(measure, means)
        columns.append(Column(_head(measure, unit), "number"))
        cells.append([f"{text}{marks(i)}" for i, text in enumerate(texts)])
    rows = [
        (*values[i], count(len(group.places)), *(column[i] for column in cells))
        for i, group in enumerate(study.groups)
    ]
    return Section(
        "Means over seeds", tuple(_mean_sentences(study, shown)), tuple(columns), tuple(rows)
    )


def _head(measure: Measure, unit: str) -> str:
    """The label of a metric with its unit, unless the label says it."""
    implied = unit in ("", "tokens", measure.result.unit) and unit not in ("%", "bytes", "s")
    return measure.label if implied else f"{measure.label} ({unit})"


def _mean_texts(measure: Measure, means: Sequence[Mean | None]) -> tuple[str, list[str]]:
    """The unit of a column, and each mean with half the width of its interval."""
    numbers = [x for m in means for x in ((m.value, m.half, m.low, m.high) if m else (None,) * 4)]
    scale, unit = (100.0, "%") if measure.result.unit == "share" else (1.0, measure.result.unit)
    if measure.result.unit in ("bytes", "s"):
        unit, texts = in_one_unit(numbers, measure.result.unit)
    else:
        texts = [MISSING if one is None else figure(scale * one) for one in numbers]
    rows = zip(means, *(texts[place::4] for place in range(4)), strict=True)
    return unit, [
        value
        if one is None or one.half is None
        else f"{value} ({low} to {high})"
        if one.is_cut
        else f"{value} ± {half}"
        for one, value, half, low, high in rows
    ]


def _mean_sentences(study: Study, shown: Sequence[Measure]) -> Iterator[str]:
    covers = (
        "Each seed chose other tokens, so it covers the choice of tokens as well as sampling"
        if study.seeds_choose
        else "It says how far another seed would move the mean on the same tokens, and nothing "
        "about other tokens"
    )
    yield (
        "Mean over the seeds, ± half the width of Student's 95 % t interval (n − 1 degrees of "
        f"freedom). {covers}."
    )
    every = [one for measure in shown for one in study.means(measure) if one]
    if any(one.is_cut for one in every):
        yield "An interval that would reach impossible values ends there: (low to high)."
    if any(study.best_groups(one) for one in shown):
        yield (
            f"{_BEST}: the best mean of a column; {_TIED}: means that tie for the best. A mean is "
            "not marked if its interval, or that of another setting, contains the other mean."
        )
    yield from _directions(study, shown)
    few = min(len(group.places) for group in study.groups)
    if few < 3:
        lowest = "one seed, and so no interval" if few == 1 else "two seeds, and so wide intervals"
        yield f"Some settings have only {lowest}. Three or more seeds are advisable."
    fixed = [one for one in shown if study.is_fixed(one)]
    if fixed:
        yield f"Not affected by the seed: {', '.join(one.label for one in fixed)}."
    if any(one.n > 1 and one.half is None for measure in shown if measure not in fixed
           for one in study.means(measure) if one):  # fmt: skip
        yield (
            "A mean without ± is of equal values, which may agree by chance. They show no spread "
            "and give no interval; two such means are not compared."
        )


def _stability(study: Study) -> Section:
    """A row for each setting: how far its seeds agree on the tokens."""
    rows = []
    for group in study.groups:
        every, some, none = study.stability(group)
        numbers = (len(study.finished(group)), every + some + none, every, some, none)
        rows.append((group.name, *map(count, numbers)))
    columns = (Column("setting", "key"), *(Column(head, "number") for head in (
        "seeds", "judged by all", "found by every seed", "by some", "by none",
    )))  # fmt: skip
    text = "Tokens that only some seeds find are at the mercy of sampling: do not cite them singly."
    sentences = (meaning(study.by, study.sides), text)
    return Section("Agreement of the seeds", sentences, columns, tuple(rows))


# Agreement of settings


def _agreement(study: Study) -> Section:
    """A row for every two values of an axis, all other settings being equal."""
    pairs, ps = study.pairs, study.adjusted
    rows = []
    for pair, p in zip(pairs, ps, strict=True):
        counts, overlap = pair.counts, pair.overlap
        rows.append(
            (
                f"{_short(pair.axis)}: {pair.left}, {pair.right}",
                _named(pair.others) if pair.others else "",
                count(counts.n),
                MISSING if counts.agreement is None else percent(counts.agreement),
                MISSING if counts.kappa is None else f"{counts.kappa:.3f}",
                count(counts.both),
                f"{overlap.expected:.1f}",
                overlap.reading,
                count(counts.only_left),
                count(counts.only_right),
                shown_p(pair.test.p),
                shown_p(p),
            )
        )
    heads = {
        "values": "key", "other settings": "key", "judged by both": "number", "agree": "number",
        "kappa": "number", "found by both": "number", "by chance": "number", "reading": "text",
        "only first": "number", "only second": "number", "p": "number", "p, adjusted": "number",
    }  # fmt: skip
    kept = [i for i, _ in enumerate(heads) if i != 1 or any(row[1] for row in rows)]
    columns = [Column(head, kind) for head, kind in heads.items()]
    return Section(
        "Agreement of the settings",
        tuple(_agreement_sentences(study)),
        tuple(columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
    )


def _agreement_sentences(study: Study) -> Iterator[str]:
    seeds = " (with several seeds: the verdict of most of them)" if study.repeats else ""
    yield (
        "Two values of one axis, all other settings being equal, on the tokens that both "
        f"judged{seeds}."
    )
    yield meaning(study.by, study.sides)
    if study.by_text:
        yield (
            "The cells have different vocabularies, so tokens are matched by their text; those "
            "without a text of their own are left out."
        )
    yield (
        "Kappa is Cohen's: 0 for agreement by chance, 1 for complete agreement. By chance: the "
        "mean overlap of two random sets of these sizes (hypergeometric)."
    )
    yield (
        "p: exact McNemar test, two-sided, of the tokens found with one value only; adjusted by "
        f"Benjamini and Hochberg over the family of {counted(len(study.pairs), 'pair')}."
    )
    weak = sum(bool(pair.test.power) for pair in study.pairs)
    if weak:
        yield (
            f"{counted(weak, 'pair has', 'pairs have')} fewer than {pairs_needed()} tokens found "
            f"with one value only. No verdicts of theirs could give p = {ALPHA:g}: a large p there "
            "does not show that the settings are equal."
        )


# Tokens


def _flips(study: Study, axis: str, shown: int | None) -> Iterator[Section]:
    found = study.flips(axis)
    title = f"Verdicts that flip with {axis}"
    if not found:
        judged = any(pair.axis == axis for pair in study.pairs)
        text = "No token is found with one value and not with another." if judged else ""
        if text:
            yield Section(title, (text,))
        return
    tokens = len({flip.token.id for flip in found})
    values = study.axes[axis]
    columns = [Column("token", "token"), Column("id", "number"), Column("other settings", "key")]
    for value in values:
        columns += [Column(value, "key"), Column("p", "number"), Column("ASR", "number")]
    rows = [_flip_row(flip, values, study.by_text) for flip in found[:shown]]
    kept = [i for i in range(len(columns)) if any(row[i] not in ("", MISSING) for row in rows)]
    seeds = (
        " With several seeds, the verdict is that of most of them; p is their median and ASR their "
        "mean."
        if study.repeats
        else ""
    )
    sentence = f"Found with one value of {axis} and not with another, all other settings being "
    yield Section(
        f"{title}: {counted(tokens, 'token')}",
        (f"{sentence}equal.{seeds}",),
        tuple(columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        hidden=len(found) - len(rows),
    )


def _flip_row(flip: Flip, values: Sequence[str], by_text: bool) -> tuple[str, ...]:
    number = "" if by_text else str(flip.token.id)
    cells = [flip.token.shown, number, _named(flip.others) if flip.others else ""]
    for value in values:
        cells += _seen_cells(flip.by_value.get(value))
    return tuple(cells)


def _seen_cells(seen: Seen | None) -> tuple[str, str, str]:
    if seen is None:
        return "not judged", MISSING, MISSING
    word = {True: "found", False: "not found", None: "undecided"}[seen.verdict]
    if seen.judged > 1:
        word += f" {seen.found}/{seen.judged}"
    return (
        word,
        MISSING if seen.p is None else probability(seen.p),
        MISSING if seen.asr is None else percent(seen.asr),
    )


# Figures


def drawings(study: Study) -> list[Drawing]:
    """The figures of a study. Needs `figures.style.style`."""
    return [one for one in (_draw_means(study),) if one]


def _draw_means(study: Study) -> Drawing | None:
    """The main metrics by setting: a dot for each cell, the mean with its interval over seeds."""
    shown = [one for one in study.measures if len(set(one.result.values)) > 1][:_PANELS]
    if not shown:
        return None
    wide = min(2, len(shown))
    deep = -(-len(shown) // wide)
    height = 0.9 + 0.24 * len(study.groups)
    drawn = new_figure((7.0, deep * height + 0.3))
    panels = [*drawn.subplots(deep, wide, sharey=True, squeeze=False).flat]
    for axes, measure in zip(panels, shown, strict=False):
        scale = 100 if measure.result.unit == "share" else 1
        for place, (group, one) in enumerate(zip(study.groups, study.means(measure), strict=True)):
            values = [measure.result.values[cell] for cell in group.places]
            known = [scale * value for value in values if value is not None]
            axes.scatter(known, [place] * len(known), s=14, color=LIGHT["muted"], alpha=0.7, lw=0)
            if one and one.n > 1:
                look = {"color": LIGHT["accent"], "ms": 5, "lw": 1.3, "capsize": 2}
                low, high = (one.value if end is None else end for end in (one.low, one.high))
                arms = [[scale * (one.value - low)], [scale * (high - one.value)]]
                axes.errorbar(scale * one.value, place, xerr=arms, fmt="o", **look)
        axes.set_xlabel(_head(measure, "%" if scale == 100 else measure.result.unit))
        axes.set_yticks(range(len(study.groups)), [_plain(one.name) for one in study.groups])
        axes.set_ylim(len(study.groups) - 0.5, -0.5)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    means = " Coloured: the mean over the seeds with its interval, if any." if study.repeats else ""
    caption = f"Each grey dot is a cell.{means} The axes do not begin at 0."
    return Drawing("means", "Results by setting", caption, drawn)


def _plain(name: str) -> str:
    """The name of a setting for a figure: spaces are not marked."""
    return label(name, 44).replace("␣", " ")
