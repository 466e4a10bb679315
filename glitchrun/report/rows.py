"""tokens.jsonl: one line for each token that each step looked at."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from glitchrun.events import DIGITS, Control, ProbeResult, Sampled, Verified
from glitchrun.ledger.record import RunRecord
from glitchrun.report.table import (
    Row,
    controls_elsewhere,
    controls_of,
    facts_by_token,
    most_interesting_first,
    table,
)
from glitchrun.vocabulary.text import visible, visible_token

# What JSON would carry raw but a reader may trip over: C1 controls and the line separators at
# which `str.splitlines` breaks a JSON line, bidi and zero-width marks, and lone surrogates, which
# no UTF-8 file can hold. All of these only ever stand in strings, where an escape means the same.
_TREACHEROUS = re.compile(
    "[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def rows(record: RunRecord) -> list[dict[str, Any]]:
    """The lines of tokens.jsonl: in step order, then in order of first appearance.

    Every line has every field; what the step did not measure is None.
    """
    return list(iter_rows(record))


def iter_rows(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The lines of tokens.jsonl, one at a time."""
    for step in record.steps:
        drawn = (*controls_of(step), *controls_elsewhere(step))
        controls = {control.token.id: control for control in drawn}
        for token_id, (verified, sampled) in facts_by_token(step).items():
            yield _line(step.id, verified, sampled, controls.pop(token_id, None))
        for control in controls.values():
            yield _control_line(step.id, control)


def write_tokens(record: RunRecord, folder: Path) -> tuple[Path, Path]:
    """Writes tokens.jsonl and tokens.json, the MLflow table. Equal records give equal bytes.

    Returns:
        The two paths. Both files appear whole or not at all.
    """
    lines, mlflow_table = folder / "tokens.jsonl", folder / "tokens.json"
    with replacing(lines) as file:
        for row in iter_rows(record):
            file.write(to_json(row) + "\n")
    with replacing(mlflow_table) as file:
        file.writelines(_mlflow_table(table(record)))
    return lines, mlflow_table


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file that takes `path`'s place when the block ends without an error.

    A device, a pipe or a socket keeps its place: it is written through. Of a symbolic link the
    file that it leads to is replaced.
    """
    if _is_written_through(path):
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            yield file
        return
    path = path.resolve()
    partial = path.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        # A lone surrogate, which UTF-8 cannot hold, must not cost a run its report.
        with partial.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _is_written_through(path: Path) -> bool:
    """Whether `path` is no regular file, or a name for one that is open: /dev/stdout."""
    is_open_file = path.absolute().parts[1:2] in (("dev",), ("proc",))
    return is_open_file or (path.exists() and not path.is_file())


def to_json(value: Any) -> str:
    """One line of JSON, readable text kept as it is, treacherous characters escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _TREACHEROUS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def rounded(value: float | None, digits: int = DIGITS) -> float | None:
    """`value` to so many significant digits; None for what is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _control_line(step: str, control: Control) -> dict[str, Any]:
    """The line of a token that the step looked at as a control alone: a verdict it has not."""
    verified = control.fact if isinstance(control.fact, Verified) else None
    sampled = control.fact if isinstance(control.fact, Sampled) else None
    line = _line(step, verified, sampled, control)
    return line | {"glitch": None, "confirmed": None}


def _line(
    step: str, verified: Verified | None, sampled: Sampled | None, control: Control | None
) -> dict[str, Any]:
    fact = verified or sampled
    assert fact is not None
    token = fact.token
    return {
        "step": step,
        "token_id": token.id,
        "token": token.text,
        "piece": token.piece,
        "category": token.category,
        "norm": rounded(token.norm),
        "presented_intact": _intact(verified, sampled),
        "probes": _probes(verified) if verified else None,
        "glitch": verified.glitch if verified else None,
        "emitted": verified.emitted if verified else None,
        "attempts": sampled.attempts if sampled else None,
        "failures": sampled.failures if sampled else None,
        "asr": rounded(sampled.asr) if sampled else None,
        "asr_low": rounded(sampled.asr_low) if sampled else None,
        "asr_high": rounded(sampled.asr_high) if sampled else None,
        "confirmed": sampled.confirmed if sampled else None,
        "emitted_text": verified.emitted_text if verified else None,
        "control_of": control.of if control else None,
        "control_alike": control.alike if control else None,
        "control_elsewhere": control.elsewhere if control else None,
        "false_alarm": control.alarm if control else None,
    }


def _intact(verified: Verified | None, sampled: Sampled | None) -> bool:
    return (verified is None or verified.presented_intact) and (sampled is None or sampled.intact)


def _probes(verified: Verified) -> dict[str, dict[str, Any]]:
    return {name: _probe(result) for name, result in verified.probes.items()}


def _probe(result: ProbeResult) -> dict[str, Any]:
    return {
        "p": rounded(result.p),
        "rank": result.rank,
        "entropy": rounded(result.entropy),
        "argmax": result.argmax,
        "gap": rounded(result.gap),
        "pass": result.passed,
        "decided_in": result.decided_in,
    }


# The UI groups by the first column and compares the second; it drops leading spaces and shows line
# breaks blank, hence the visible form of the token.
COLUMNS: dict[str, Callable[[Row], Any]] = {
    "token_repr": lambda row: visible_token(row.token),
    "verdict": lambda row: row.verdict,
    "step": lambda row: ", ".join(row.steps),
    "token_id": lambda row: row.token.id,
    "category": lambda row: row.token.category,
    "glitch": lambda row: row.glitch,
    "p": lambda row: rounded(row.closest[1].p) if row.closest else None,
    "rank": lambda row: row.closest[1].rank if row.closest else None,
    "entropy": lambda row: rounded(row.closest[1].entropy) if row.closest else None,
    "probe": lambda row: row.closest[0] if row.closest else None,
    "asr": lambda row: rounded(row.sampled.asr) if row.sampled else None,
    "asr_low": lambda row: rounded(row.sampled.asr_low) if row.sampled else None,
    "asr_high": lambda row: rounded(row.sampled.asr_high) if row.sampled else None,
    "attempts": lambda row: row.sampled.attempts if row.sampled else None,
    "failures": lambda row: row.sampled.failures if row.sampled else None,
    "confirmed": lambda row: row.confirmed,
    "emitted": lambda row: row.verified.emitted if row.verified else None,
    "emitted_repr": lambda row: None if row.said is None else visible(row.said),
    "norm": lambda row: rounded(row.token.norm),
    "presented_intact": lambda row: row.intact,
    "control_of": lambda row: row.control_of,
}
"""Columns of tokens.json. p, rank and entropy are of the probe that came closest to passing."""


def _mlflow_table(found: list[Row]) -> Iterator[str]:
    yield f'{{"columns":{to_json(list(COLUMNS))},"data":['
    for place, row in enumerate(most_interesting_first(found)):
        cells = to_json([value(row) for value in COLUMNS.values()])
        yield f"{',' if place else ''}\n{cells}"
    yield "\n]}\n"
