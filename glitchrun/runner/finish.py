"""The files that a run leaves behind."""

from __future__ import annotations

import json

import yaml

from glitchrun.events import Artifact
from glitchrun.ledger import RunRecord
from glitchrun.report import write_report
from glitchrun.spec.types import Experiment


def write_inputs(record: RunRecord, experiment: Experiment) -> None:
    """What the run was asked to do and where it runs; there from the start."""
    folder = record.artifacts
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.yaml").write_text(experiment.text, encoding="utf-8")
    resolved = yaml.safe_dump(dict(record.spec), sort_keys=False, allow_unicode=True, width=100)
    (folder / "spec.resolved.yaml").write_text(resolved, encoding="utf-8")
    text = json.dumps(record.environment, indent=2) + "\n"
    (folder / "environment.json").write_text(text, encoding="utf-8")


def write_results(record: RunRecord) -> None:
    """tokens.jsonl, tokens.json, the tables, the plots and report.html, from the record alone."""
    write_report(record)


def write_artifact(record: RunRecord, artifact: Artifact) -> None:
    path = record.artifacts / artifact.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(artifact.text, encoding="utf-8")
