"""What stands behind each row of the token table, which page/details.js shows when it is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glitchrun.events import ProbeResult
from glitchrun.ledger.record import RunRecord, StepRecord
from glitchrun.report.attempt_rows import AttemptRow, attempts_by_token
from glitchrun.report.formatting import spelled
from glitchrun.report.token_rows import TokenRow
from glitchrun.report.writing import rounded
from glitchrun.spec.probes import PROBES, TOKEN

DIGITS = 3
"""Significant digits of numbers on the page; tokens.jsonl has more."""
ATTEMPTS = 20_000
"""Continuations on the page, those of the most interesting tokens; attempts.jsonl has all."""

Attempts = Mapping[str, Mapping[int, Sequence[AttemptRow]]]
"""By step and token id."""


def token_details(
    record: RunRecord, rows: Sequence[TokenRow], shown: Sequence[str], attempts: Attempts
) -> dict[str, Any]:
    """JSON-ready data beside the columns of the table; lists have an item for each row. `shown`
    is the column of the tokens' texts."""
    probes = dict.fromkeys(name for row in rows if row.verified for name in row.verified.probes)
    dtypes: dict[str, int] = {}
    steps: dict[tuple[str, str], int] = {}
    return {
        "raw": {
            place: row.token.text
            for place, (row, text) in enumerate(zip(rows, shown, strict=True))
            if text.replace("␣", " ") != row.token.text
        },
        "steps": [steps.setdefault((row.steps[0], row.steps[-1]), len(steps)) for row in rows],
        "stepPairs": [*steps],
        "probes": [
            {"name": name, "results": [_result(row, name, dtypes) for row in rows]}
            for name in probes
        ],
        "dtypes": [*dtypes],
        "prompts": [prompt for step in record.steps for prompt in _prompts(step)],
        "outcomes": {
            place: "".join("x" if failed else "." for failed in row.sampled.outcomes)
            for place, row in enumerate(rows)
            if row.sampled
        },
        **_attempts(rows, attempts),
    }


def attempts_by_step(record: RunRecord) -> Attempts:
    """The continuations that the steps kept."""
    return {step.id: found for step in record.steps if (found := attempts_by_token(step))}


def attempts_on(row: TokenRow, attempts: Attempts) -> Sequence[AttemptRow]:
    """The continuations behind a row; empty if the token was not sampled or they were not kept."""
    return attempts.get(row.steps[-1], {}).get(row.token.id, ()) if row.sampled else ()


def _result(row: TokenRow, probe: str, dtypes: dict[str, int]) -> list[Any] | None:
    """p, rank, entropy, gap, the most probable id, and one number for passed (1), intact (2) and
    the place of the dtype (times 4).

    The probe that decides has None for p, rank and entropy, which are in the table.
    """
    found = row.verified.probes.get(probe) if row.verified else None
    if found is None:
        return None
    decides = row.closest is not None and row.closest[0] == probe
    numbers = (None, None, None) if decides else _numbers(found)
    dtype = dtypes.setdefault(found.decided_in, len(dtypes))
    marks = found.passed + 2 * found.intact + 4 * dtype
    return [*numbers, rounded(found.gap, DIGITS), found.argmax, marks]


def _numbers(found: ProbeResult) -> tuple[Any, Any, Any]:
    return rounded(found.p, DIGITS), found.rank, rounded(found.entropy, DIGITS + 1)


def _prompts(step: StepRecord) -> list[dict[str, Any]]:
    """The prompts of a step by probe: as sent, or as the probe defines them in old records."""
    sent: dict[str, Sequence[str]] = {}
    for timed in step.batches:
        for name, parts in timed.batch.prompts.items():
            sent.setdefault(name, parts)
    asked = dict.fromkeys(name for timed in step.batches for name in _probes(timed.batch.facts))
    return [
        {"step": step.id, "probe": name, "sent": name in sent, "texts": [*map(_shown, texts)]}
        for name in (*sent, *(name for name in asked if name not in sent))
        if (texts := sent.get(name) or _defined(name))
    ]


def _probes(facts: Sequence[Any]) -> list[str]:
    facts = [getattr(fact, "fact", fact) for fact in facts]
    return [name for fact in facts for name in getattr(fact, "probes", ())]


def _defined(probe: str) -> Sequence[str]:
    """The probe's user text around the token, and below it the beginning of the answer."""
    if probe not in PROBES:
        return ()
    before, _, after = PROBES[probe].user.partition(TOKEN)
    return before, f"{after}\n{PROBES[probe].prefill}"


def _shown(text: str) -> str:
    """Text with invisible characters spelled out, except spaces and line breaks."""
    return "\n".join(spelled(line).replace("␣", " ") for line in text.split("\n"))


def _attempts(rows: Sequence[TokenRow], attempts: Attempts) -> dict[str, Any]:
    """`attempts` by row, as [place of the probe, number, said, text, place of the symptom]."""
    probes: dict[str, int] = {}
    symptoms: dict[str | None, int] = {}
    found: dict[int, list[list[Any]]] = {}
    left = ATTEMPTS
    for place, row in enumerate(rows):
        said = attempts_on(row, attempts)
        if said and len(said) <= left:
            left -= len(said)
            found[place] = [
                [
                    probes.setdefault(one.attempt.probe, len(probes)),
                    one.attempt.number,
                    int(one.attempt.said),
                    _shown(one.attempt.text),
                    symptoms.setdefault(one.symptom, len(symptoms)),
                ]
                for one in said
            ]
    return {"attempts": found, "attemptProbes": [*probes], "symptoms": [*symptoms]}
