"""Two sides, for people: agreement, overlap, and the tokens that make the difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from glitchrun.report.comparison.agreement import Counts
from glitchrun.report.comparison.pairs import Both, Pair
from glitchrun.report.comparison.section import JUDGED, Section, cells, text
from glitchrun.report.numbers import count, counted, figure, percent


def pair_sections(pair: Pair, shown: int | None) -> Iterator[Section]:
    """What a pair comes to; of long tables `shown` rows, all where it is None."""
    yield _agreement(pair)
    yield _overlap(pair)
    yield from _differences(pair, shown)
    yield from _asr(pair, shown)


def _agreement(pair: Pair) -> Section:
    counts, left, right = pair.counts, pair.left.label, pair.right.label
    sentences = [f"Both have a verdict on {counted(counts.n, 'token')}.", *_kappa(counts)]
    if pair.other_texts:
        sentences.append(
            f"{counted(pair.other_texts, 'id')} that both list left out: the texts differ."
        )
    if pair.p_distance is not None:
        sentences.append(
            f"Their probabilities lie a factor of {figure(10**pair.p_distance)} apart (median)."
        )
    rows = (
        (f"{left} found", count(counts.both), count(counts.only_left)),
        (f"{left} did not", count(counts.only_right), count(counts.neither)),
    )
    head = ("", f"{right} found", f"{right} did not")
    return Section("Agreement", tuple(sentences), head, rows if counts.n else ())


def _kappa(counts: Counts) -> Iterator[str]:
    if counts.agreement is None or counts.by_chance is None:
        return
    yield f"They agree on {percent(counts.agreement)} of them."
    if counts.kappa is None:
        yield (
            "Cohen's kappa is not defined: on these tokens each side has one verdict only, so "
            "nothing tells agreement from chance."
        )
        return
    yield (
        f"Cohen's kappa is {figure(counts.kappa)}: verdicts at random, as many of each kind, would "
        f"agree on {percent(counts.by_chance)}; 0 is as good as that, 1 is complete agreement."
    )


def _overlap(pair: Pair) -> Section:
    about = ["By chance: what two sets of these sizes would share, drawn blindly (hypergeometric)."]
    if pair.scope is None:
        about.append(f"{_sizes(pair)}: give the number of tokens to look at with --scope.")
    known = pair.left.looked_at is not None, pair.right.looked_at is not None
    missing = [
        f"How many tokens {side.label} looked at is not known: what it did not find says nothing."
        for side, is_known in zip((pair.left, pair.right), known, strict=True)
        if not is_known
    ]
    rows = tuple(
        (
            one.what,
            count(one.left),
            count(one.right),
            count(one.scope),
            f"{'at least ' * one.at_least}{one.observed:,}",
            figure(one.expected),
            figure(one.p_more) if one.p_more else "< 1e-300",
            one.reading,
        )
        for one in pair.overlaps
    )
    left, right = pair.left.label, pair.right.label
    head = ("", left, right, "Of", "Shared", "By chance", "P(as many or more)", "Reading")
    return Section("Overlap and chance", (*about, *missing), head, rows)


def _sizes(pair: Pair) -> str:
    known = [side.vocabulary for side in (pair.left, pair.right) if side.vocabulary]
    if len(known) < 2:
        return "The vocabulary's size is not known"
    return (
        f"The vocabularies have {known[0]:,} and {known[1]:,} entries, so the same id may be "
        "another token"
    )


def _differences(pair: Pair, shown: int | None) -> Iterator[Section]:
    different = pair.differences
    if different:
        yield _tokens(f"{counted(len(different), 'verdict')} that differ", pair, different, shown)


def _asr(pair: Pair, shown: int | None) -> Iterator[Section]:
    if not pair.asr:
        return
    far = pair.asr_apart
    title = "Attack success rates"
    sentence = (
        f"Both sampled {counted(len(pair.asr), 'token')}; of {counted(len(far), 'token')} the 95 % "
        "intervals (Wilson) share no point, which is a cautious test of a difference."
    )
    yield _tokens(title, pair, far, shown, sentence) if far else Section(title, (sentence,))


def _tokens(
    title: str, pair: Pair, found: Sequence[Both], shown: int | None, *sentences: str
) -> Section:
    left, right = pair.left.label, pair.right.label
    head = ("Token", "Id", *(f"{side} {what}" for side in (left, right) for what in JUDGED))
    rows = tuple(
        (text(both.left, both.right), str(both.left.id), *cells(both.left), *cells(both.right))
        for both in found[:shown]
    )
    return Section(title, sentences, head, rows, tokens=(0,), hidden=len(found) - len(rows))
