"""The append-only record of a run on disk: what is durable, what resumes, what is read back.

ROOT/runs/EXPERIMENT/KEY/           one folder for everything with the same results digest
    lock                            held by the process that executes it
    attempt-1/                      `--fresh` starts the next one
        run.json                    what the run is; the ledger's first line says the same
        ledger.jsonl                what happened; append-only, one JSON object a line, each with
                                    its number and a checksum (checksums.py)
        ledger.damaged-1.jsonl      a ledger that was found damaged, as it was found
        artifacts/                  spec.yaml, tokens.jsonl, report.html, ...
"""

from glitchrun.ledger.folders import (
    current_attempt,
    existing_status,
    find_runs,
    latest_attempt,
    run_folder,
    settle,
    unreadable_lines,
)
from glitchrun.ledger.journal import Journal, mark_delivered, run_document
from glitchrun.ledger.lock import hold, is_held
from glitchrun.ledger.read import read_run
from glitchrun.ledger.record import RunRecord

__all__ = [
    "Journal",
    "RunRecord",
    "current_attempt",
    "existing_status",
    "find_runs",
    "hold",
    "is_held",
    "latest_attempt",
    "mark_delivered",
    "read_run",
    "run_document",
    "run_folder",
    "settle",
    "unreadable_lines",
]
