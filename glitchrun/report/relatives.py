"""Tables of tokens that are related by their text (`vocabulary/relatives.py`), from the file next
to a step's ledger: longer tokens that contain a severe one, and what unreachable tokens are encoded
as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from glitchrun.events import Verified
from glitchrun.ledger.record import RunRecord
from glitchrun.report.indicators import LongerTokens, of_step
from glitchrun.report.token_rows import TokenRow, facts_by_token, remembered


@dataclass(frozen=True, slots=True)
class RelativesTable:
    """A table in the form of a strategy's `x-tables`."""

    step: str
    name: str
    title: str
    description: str
    columns: Mapping[str, Mapping[str, Any]]
    rows: tuple[Mapping[str, Any], ...]


_LONGER = {
    "token": {"description": "A severe token.", "kind": "token"},
    "id": {"description": "Its id.", "kind": "id"},
    "p": {"description": "Its probability.", "kind": "probability"},
    "longer": {"description": "A token that contains its text.", "kind": "token"},
    "longer_id": {"description": "Its id.", "kind": "id"},
    "longer_p": {
        "description": "Its probability by the same probes, if the run verified it.",
        "kind": "probability",
    },
    "longer_verdict": {"description": "Its verdict."},
    "of": {"description": "Total number of longer tokens."},
}
_UNREACHABLE = {
    "token": {"description": "A token that the tokenizer never produces.", "kind": "token"},
    "id": {"description": "Its id.", "kind": "id"},
    "encoded_as": {"description": "The tokens to which its text is encoded.", "kind": "token"},
    "ids": {"description": "Their ids."},
}


@remembered
def relatives_tables(record: RunRecord) -> tuple[RelativesTable, ...]:
    """The tables that have rows, each of the first step that has data for it."""
    tables = (_longer(record), _unreachable(record))
    return tuple(table for table in tables if table is not None and table.rows)


def _longer(record: RunRecord) -> RelativesTable | None:
    rows: list[tuple[float, Mapping[str, Any]]] = []
    known = _by_probes(record)
    step_id, done = "", set[int]()
    for step in record.steps:
        found = of_step(step)
        for token_id, (verified, _) in facts_by_token(step).items() if found else ():
            longer = found.longer.get(token_id) if found else None
            if longer is None or verified is None or not verified.severe or token_id in done:
                continue
            done.add(token_id)
            step_id = step_id or step.id
            head = {"token": verified.token.text, "id": token_id, "p": verified.p}
            pairs = _pairs(longer, known[_probes(verified)])
            rows += [(verified.p, head | pair | {"of": longer.count}) for pair in pairs]
    rows.sort(key=lambda row: row[0])
    return RelativesTable(
        step_id,
        "longer",
        "Longer tokens that contain severe tokens",
        "A severe token is often an intermediate merge of the tokenizer's training, which occurs "
        "in text only as a part of longer tokens. For each severe token, up to 8 longer tokens are "
        "listed, verified ones first.",
        _LONGER,
        tuple(row for _, row in rows),
    )


_Probes = frozenset[str]


def _probes(verified: Verified) -> _Probes:
    return frozenset((*verified.probes, *verified.answers))


def _by_probes(record: RunRecord) -> dict[_Probes, dict[int, Verified]]:
    """By probes, the last verdict on each token: verdicts by other probes are not comparable."""
    found: dict[_Probes, dict[int, Verified]] = {}
    for step in record.steps:
        for token_id, (verified, _) in facts_by_token(step).items():
            if verified is not None:
                found.setdefault(_probes(verified), {})[token_id] = verified
    return found


def _pairs(longer: LongerTokens, known: Mapping[int, Verified]) -> Iterator[dict[str, Any]]:
    for token_id, text in longer.tokens:
        fact = known.get(token_id)
        yield {
            "longer": text,
            "longer_id": token_id,
            "longer_p": fact.p if fact else None,
            "longer_verdict": TokenRow(fact.token, (), fact).verdict if fact else "not verified",
        }


def _unreachable(record: RunRecord) -> RelativesTable | None:
    for step in record.steps:
        found = of_step(step)
        if found is None or not found.unreachable:
            continue
        rows = tuple(
            {
                "token": text,
                "id": token_id,
                "encoded_as": " ".join(f"«{one}»" for _, one in instead),
                "ids": ", ".join(str(other) for other, _ in instead),
            }
            for token_id, text, instead in found.unreachable
        )
        more = found.unreachable_count - len(rows)
        return RelativesTable(
            step.id,
            "unreachable",
            "Unreachable tokens",
            "Tokens that the tokenizer never produces, and the tokens to which it encodes their "
            "text instead." + (f" {more:,} more are not listed." if more else ""),
            _UNREACHABLE,
            rows,
        )
    return None
