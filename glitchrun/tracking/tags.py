"""What a person searches runs by, and how glitchrun finds its own."""

from __future__ import annotations

import getpass
import json

from glitchrun.ledger.record import RunRecord
from glitchrun.spec.mlflow_rules import is_reserved
from glitchrun.tracking import limits
from glitchrun.tracking.note import note
from glitchrun.tracking.params import model_name

KEY = "glitchrun.key"
ATTEMPT = "glitchrun.attempt"
KIND = "glitchrun.kind"
LEDGER = "glitchrun.ledger"
"""Id of the ledger that a run is made from: what it is found again by."""
DELIVERED = "glitchrun.delivered"
"""When the run ended as it was delivered, whole: files too. Set last."""

NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
TABLE = "tokens.json"
TABLES = "tables"


def birth_tags(record: RunRecord, ledger: str) -> dict[str, str]:
    """Tags that a run is created with: how it is found again, and who started it."""
    return {
        LEDGER: ledger,
        KEY: record.identity.key,
        ATTEMPT: str(record.identity.attempt),
        KIND: "run",
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": record.identity.spec_path,
    }


def tags(record: RunRecord) -> dict[str, str]:
    """Tags of a run as its record stands. The spec's own tags keep their names; those that would
    say what the run is, as only specs of earlier versions may have, are left out."""
    own = ((limits.key(name), str(value)) for name, value in record.identity.tags.items())
    found = {name: value for name, value in own if not is_reserved(name)}
    found |= {
        "glitchrun.model": model_name(record),
        "glitchrun.model_path": str(record.spec.get("model", {}).get("path", "")),
        "glitchrun.seed": str(record.spec.get("seed", 0)),
        "glitchrun.spec": record.identity.spec_path,
        "glitchrun.version": str(record.environment.get("glitchrun", "")),
        "glitchrun.gates": verdict(record),
        NOTE: note(record),
    }
    for name, digest in record.identity.digests.items():
        found[f"glitchrun.digest.{limits.key(name)}"] = digest
    found |= _model_tags(record) | _git_tags(record)
    if (record.artifacts / TABLE).exists():
        found["mlflow.loggedArtifacts"] = _tables(record)
    return {
        name: limits.value(limits.storable(text), limits.TAG)
        for name, text in found.items()
        if text
    }


def _tables(record: RunRecord) -> str:
    """The files that MLflow's table view is to offer: as many as the tag holds."""
    names = [file.name for file in sorted((record.artifacts / TABLES).glob("[!.]*.json"))]
    paths = [TABLE, *(f"{TABLES}/{name}" for name in names)]
    listed = [{"path": path, "type": "table"} for path in paths]
    while len(json.dumps(listed)) > limits.TAG:
        listed.pop()
    return json.dumps(listed)


def verdict(record: RunRecord) -> str:
    """pass, fail or inconclusive over all gates; empty where none was evaluated."""
    outcomes = {gate.outcome for gate in record.gates}
    return next((one for one in ("fail", "inconclusive", "pass") if one in outcomes), "")


def _model_tags(record: RunRecord) -> dict[str, str]:
    model = record.model
    if model is None:
        return {}
    return {
        "glitchrun.template": model.template,
        "glitchrun.template_rule": model.template_rule,
        "glitchrun.architecture": model.architecture,
        "glitchrun.device": model.device,
        "glitchrun.dtype": model.dtype,
        "glitchrun.quantization": model.quantization,
        "glitchrun.unquantized": ", ".join(model.unquantized),
    }


def _git_tags(record: RunRecord) -> dict[str, str]:
    git = record.environment.get("git") or {}
    if not git.get("commit"):
        return {}
    return {
        "mlflow.source.git.commit": str(git["commit"]),
        "mlflow.source.git.dirty": str(bool(git.get("dirty"))).lower(),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no such user in the system's table: a container
        return "unknown"
