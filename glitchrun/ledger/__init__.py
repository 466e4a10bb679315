"""The append-only records of runs and of the steps that they share.

ROOT/steps/KEY/attempt-1/           what a step measured, see step_store.py
ROOT/runs/EXPERIMENT/KEY/           one folder for all attempts with the same results digest
    lock, owner.json                the lock of the process that executes the run
    attempt-1/                      `--fresh` starts the next one
        run.json                    identity and resolved spec; repeated in the ledger's first line
        ledger.jsonl                append-only, one JSON object a line, each with its number and
                                    a checksum; refers to steps (up to format 2 it had their facts)
        ledger.damaged-1.jsonl      a damaged ledger, kept as it was found
        delivered.json              the run's ids in MLflow
        tags.json                   the tags that `glitchrun tag` set
        cell.json                   the study that the run was added to after it had begun
        artifacts/                  spec.yaml, tokens.jsonl, report.html, ...

record.py     the run as read back: what MLflow, the report and `status` are made from
step_store.py the store of steps
identity.py   run.json, cell.json, delivered.json and tags.json
checksums.py  numbers and checksums of the lines; finds damage
fold.py       entries to a record
read.py       folder to record
journal.py    appends entries, repairs a ledger when a run is resumed
folders.py    finds the folders of runs and attempts
garbage.py    the steps that no run refers to; sizes and removal of folders
lock.py       locks between processes
files.py      durable reading and writing
"""

from glitchrun.ledger.folders import (
    ROOT,
    current_attempt,
    existing_status,
    find_runs,
    latest_attempt,
    mark_killed,
    run_folder,
    unreadable_lines,
)
from glitchrun.ledger.identity import mark_delivered, run_document
from glitchrun.ledger.journal import Journal
from glitchrun.ledger.lock import hold, is_held
from glitchrun.ledger.read import read_run
from glitchrun.ledger.record import RunRecord

__all__ = [
    "ROOT",
    "Journal",
    "RunRecord",
    "current_attempt",
    "existing_status",
    "find_runs",
    "hold",
    "is_held",
    "latest_attempt",
    "mark_delivered",
    "mark_killed",
    "read_run",
    "run_document",
    "run_folder",
    "unreadable_lines",
]
