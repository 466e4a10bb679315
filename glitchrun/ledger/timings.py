"""How fast earlier runs were, read from their ledgers without parsing the facts.

A ledger may contain tens of megabytes of facts. Only the ends of its batches are parsed, and facts
are counted by their names, so that `plan` can look at every ledger.
"""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.errors import GlitchrunError
from glitchrun.ledger.files import LEDGER, open_regular
from glitchrun.ledger.identity import read_run_document
from glitchrun.spec.probes import USUAL_POSITIONS

_MOST_LEDGERS = 30
"""Ledgers that are read: the latest ones."""
PROMPT_TOKENS = 8
"""Generated tokens that take as long as the prompt of a continuation. It has about 20 positions,
and attempts on a token share it in part."""
_PROMPT = b'"decided_in":'
"""Occurs once in the result of each prompt, and with an escaped quote in any text."""
_SAMPLED = b'"kind":"sampled"'


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a run took for all of its work of one kind."""

    kind: str
    """verify (amount: prompts of usual length), screen (tokens), gradient (gradients), sample and
    answer (generated tokens, and `PROMPT_TOKENS` for each continuation), score (sequences) or start
    (1: loading, and writing the report)."""
    amount: float
    seconds: float
    run: str
    """The run's key."""
    at: int
    """When it began, in milliseconds since the epoch."""
    fingerprint: str
    """Of the model."""
    quantization: str
    device: str
    """Kind of device: cpu or cuda."""
    parameters: float | None
    """Parameters that one position is multiplied with; all of them in records of earlier versions;
    None if unknown."""


def read_timings(root: Path, host: str | None = None) -> list[Timing]:
    """The timings of the latest runs under a tracking root that ran on this machine.

    Runs that are not finished count too. A ledger that cannot be read is skipped.

    Args:
        root: The tracking root.
        host: Name of the machine; None for this one.
    """
    found: list[Timing] = []
    for ledger in _latest_ledgers(root):
        # A damaged or foreign file gives no timings; `status` reports it.
        with suppress(GlitchrunError, OSError, ValueError, KeyError, TypeError, AttributeError):
            found += _timings(ledger, host or socket.gethostname())
    return found


def _latest_ledgers(root: Path) -> list[Path]:
    dated = []
    with suppress(OSError):
        for path in root.glob(f"runs/*/*/attempt-*/{LEDGER}"):
            with suppress(OSError):
                dated.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(dated, reverse=True)[:_MOST_LEDGERS]]


def _timings(ledger: Path, host: str) -> list[Timing]:
    run = read_run_document(ledger.parent)
    amounts: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    session: Mapping[str, Any] = {}
    model: Mapping[str, Any] = {}
    used: set[tuple[str, int]] = set()
    for entry in _entries(ledger):
        if entry["kind"] == "session":
            session = entry
            if entry["host"] != host or entry["plan"].get("shared"):  # several workers' time
                return []
        elif entry["kind"] == "model":
            model = entry["model"]
        elif entry["kind"] == "batch":
            for kind, amount, spent in entry["work"]:
                amounts[kind] += amount
                seconds[kind] += spent
        elif entry["kind"] == "uses" and not entry["reused"]:
            used.add((entry["key"], entry["attempt"]))
        elif entry["kind"] == "start":
            amounts["start"], seconds["start"] = 1, entry["seconds"]
    for key, attempt in used:
        measured = ledger.parents[4] / "steps" / key / f"attempt-{attempt}" / LEDGER
        for kind, amount, spent in _measured(measured):
            amounts[kind] += amount
            seconds[kind] += spent
    if amounts.keys() == {"start"}:  # a run that only reused steps loads no model
        return []
    memory = session["plan"]["memory"]
    return [
        Timing(
            kind=kind,
            amount=amounts[kind],
            seconds=seconds[kind],
            run=run["identity"]["key"],
            at=session["at"],
            fingerprint=session["plan"]["fingerprint"],
            quantization=run["spec"]["model"].get("quantization", "none"),
            device="cuda" if str(model["device"]).startswith("cuda") else "cpu",
            parameters=memory.get("active_parameters") or memory["parameters"],
        )
        for kind in amounts
        if amounts[kind] > 0 and seconds[kind] > 0
    ]


def _entries(ledger: Path) -> Iterator[dict[str, Any]]:
    """The sessions, models and batches of a ledger, batches as their work, and how long it took to
    start the run and to end it."""
    began = before = ending = 0
    with open_regular(ledger) as file:
        for line in file:
            kind = line[9 : line.find(b'"', 9)]
            if kind == b"batch":
                yield {"kind": "batch", "work": list(_work(line))}
            elif kind in (b"session", b"model", b"step", b"uses", b"gates", b"ended"):
                entry = json.loads(line)
                if kind == b"session":
                    began, before = entry["at"], 0
                elif kind in (b"step", b"uses") and not before:
                    before = entry["at"] - began
                elif kind == b"gates":
                    ending = entry["at"]
                elif kind == b"ended" and before and ending:
                    spent = (before + entry["at"] - ending) / 1000
                    yield {"kind": "start", "seconds": spent}
                yield entry


def _measured(ledger: Path) -> Iterator[tuple[str, float, float]]:
    """The work in the ledger of a step."""
    for entry in _entries(ledger):
        if entry["kind"] == "batch":
            yield from entry["work"]


def _work(line: bytes) -> Iterator[tuple[str, float, float]]:
    """Kind, amount and seconds of the work of a batch."""
    end = json.loads(b"{" + line[line.rindex(b'],"done":') + 2 :])
    counters, seconds, searching = end["counters"], end["seconds"], end.get("search_seconds", 0.0)
    if screens := counters.get("screens"):
        yield "screen", screens, searching
    if gradients := counters.get("gradients"):
        yield "gradient", gradients, searching
    if evaluations := counters.get("evaluations"):
        yield "score", evaluations, seconds
    elif drawn := counters.get("drawn"):
        sampled = drawn + PROMPT_TOKENS * counters.get("continuations", 0)
        yield ("sample" if _SAMPLED in line else "answer"), sampled, seconds
    elif positions := counters.get("positions"):
        yield "verify", positions / USUAL_POSITIONS, seconds
    elif prompts := line.count(_PROMPT):
        yield "verify", prompts, seconds
