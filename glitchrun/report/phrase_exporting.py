"""Lists of a run's phrases, in the formats that can express a sequence of several tokens.

A format that bans single tokens cannot: banning a phrase's tokens would ban them everywhere. It is
refused, and the message names formats that can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.errors import UsageError
from glitchrun.events import SEVERE
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.formatting import counted
from glitchrun.report.totals import thresholds
from glitchrun.report.writing import rounded
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.vocabulary.text import visible

_CHARACTERS = "characters"
"""The kind of control of a phrase that is the usual tokenization of its text."""


@dataclass(frozen=True, slots=True)
class PhraseRow:
    """What the steps of a run found about one phrase."""

    ids: tuple[int, ...]
    text: str
    tested: Mapping[str, Any] | None
    """Its row of a `test` step; None where none examined it."""
    sampled: Mapping[str, Any] | None
    """Its row of a `validate` step; None where none sampled it."""
    confirmed: bool | None
    """Whether its ASR reaches `thresholds.asr`; None where it was not sampled."""
    steps: tuple[str, ...]

    @property
    def glitch(self) -> bool | None:
        """Whether it fails every probe; None where none was tested."""
        return None if self.tested is None else bool(self.tested["result"] == "fail")

    @property
    def severe(self) -> bool | None:
        """Whether it fails, and its probability is below that of severe tokens."""
        if self.tested is None:
            return None
        return bool(self.glitch and self.tested["p"] < SEVERE)

    @property
    def cells(self) -> Mapping[str, Any]:
        """A row of it, for what is the same in all."""
        return self.tested or self.sampled or {}

    @property
    def usual(self) -> bool:
        """Whether the text is usually encoded to these ids."""
        return bool(self.cells["control"] == _CHARACTERS)

    @property
    def control_passes(self) -> bool:
        """Whether the model repeats the same text in the other tokenization."""
        found = [one for one in (self.tested, self.sampled) if one is not None]
        return all(one["control_result"] == "pass" for one in found)

    def selected(self, where: str) -> bool:
        """Whether it has the verdict `confirmed`, `severe` or `glitch`."""
        return getattr(self, where) is True


def phrase_rows(record: RunRecord) -> list[PhraseRow]:
    """The phrases of a run's steps, each once, those that fail and are least probable first."""
    found: dict[tuple[int, ...], dict[str, Mapping[str, Any]]] = {}
    for step in record.steps:
        for cells in _entries(step):
            found.setdefault(tuple(cells["ids"]), {})[step.id] = cells
    limit = thresholds(record).asr
    rows = [_row(ids, by_step, limit) for ids, by_step in found.items()]
    return sorted(rows, key=lambda row: (not row.confirmed, not row.glitch, _p(row)))


def _entries(step: StepRecord) -> Iterable[Mapping[str, Any]]:
    entries = (entry for timed in step.batches for entry in timed.batch.entries)
    return (entry.cells for entry in entries if entry.table == "phrases")


def _row(ids: tuple[int, ...], by_step: Mapping[str, Mapping[str, Any]], limit: float) -> PhraseRow:
    """A phrase that any of several steps failed counts as failed."""
    rows = list(by_step.values())
    tests = sorted((row for row in rows if "p" in row), key=lambda row: row["result"])
    samples = sorted((row for row in rows if "asr" in row), key=lambda row: -row["asr"])
    sampled = samples[0] if samples else None
    confirmed = None if sampled is None else sampled["asr"] >= limit
    tested = tests[0] if tests else None
    return PhraseRow(ids, rows[0]["phrase"], tested, sampled, confirmed, tuple(by_step))


def _p(row: PhraseRow) -> float:
    return 1.0 if row.tested is None else float(row.tested["p"])


def where_of(rows: Sequence[PhraseRow], where: str | None) -> str:
    """The verdict by which phrases are selected.

    Raises:
        UsageError: no step can give it.
    """
    where = where or ("confirmed" if any(row.sampled for row in rows) else "glitch")
    if all(getattr(row, where) is None for row in rows):
        sampled = where == "confirmed"
        deciding = [
            name
            for name, strategy in STRATEGIES.items()
            if strategy.takes_phrases and strategy.samples_attempts is sampled
        ]
        names, other = " or ".join(deciding), "glitch" if sampled else "confirmed"
        raise UsageError(
            f"no phrase can be {where}: the run has no step of the strategy {names} on phrases; "
            f"add one, or select with --where {other}"
        )
    return where


def notes(found: Sequence[PhraseRow], kept: Sequence[PhraseRow], *, bans: bool) -> Iterable[str]:
    """What was left out, and what the reader of a list of phrases should know."""
    if left_out := len(found) - len(kept):
        yield (
            f"left out: {counted(left_out, 'phrase')} whose text is usually encoded to other "
            "tokens, or is only white space"
        )
    if bans and (others := sum(not row.usual for row in kept)):
        yield (
            f"{counted(others, 'phrase')} of the list banned only in these tokens: a model can "
            "still write the same text in its usual ones"
        )
    if passing := sum(row.control_passes for row in kept):
        yield f"{counted(passing, 'phrase')} of the list repeated in the other tokenization"


# Formats --------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def ids(rows: Sequence[PhraseRow]) -> bytes:
    """A JSON list of lists of ids, as `tokens.phrases.ids` of a spec."""
    return _json([list(row.ids) for row in rows])


def bad_words(rows: Sequence[PhraseRow]) -> bytes:
    """`bad_words_ids` of a generation_config.json: each phrase as a sequence."""
    return _json({"bad_words_ids": [list(row.ids) for row in rows]})


def is_sent_as_text(row: PhraseRow) -> bool:
    """Whether a program that gets the text encodes it to this phrase."""
    return row.usual and bool(row.text.strip())


def _of(which: str, name: str) -> Callable[[PhraseRow], Any]:
    def value(row: PhraseRow) -> Any:
        cells = getattr(row, which)
        found = None if cells is None else cells.get(name)
        return rounded(found) if isinstance(found, float) else found

    return value


COLUMNS: Mapping[str, Callable[[PhraseRow], Any]] = {
    "phrase": lambda row: row.text,
    "phrase_repr": lambda row: visible(row.text),
    "ids": lambda row: " ".join(map(str, row.ids)),
    "glitch": lambda row: row.glitch,
    "confirmed": lambda row: row.confirmed,
    "severe": lambda row: row.severe,
    "p": _of("tested", "p"),
    "said": _of("tested", "said"),
    "asr": _of("sampled", "asr"),
    "asr_low": _of("sampled", "asr_low"),
    "asr_high": _of("sampled", "asr_high"),
    "attempts": _of("sampled", "attempts"),
    "failures": _of("sampled", "failures"),
    "control": lambda row: row.cells["control"],
    "control_ids": lambda row: " ".join(map(str, row.cells["control_ids"])),
    "control_passes": lambda row: row.control_passes,
    "control_p": _of("tested", "control_p"),
    "control_asr": _of("sampled", "control_asr"),
    "steps": lambda row: " ".join(row.steps),
}
"""Columns of the tables. The control is the same text in other tokens."""
