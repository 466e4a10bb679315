"""The params and tags of a run: what people compare and search runs by.

MLflow accepts a param only once, so params come from data that never changes during a run. Names
and values are made to fit the limits of `mlflow.utils.validation` (MLflow 3.17).
"""

from __future__ import annotations

import getpass
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from glitchrun.ledger.identity import former_names
from glitchrun.ledger.record import RunRecord
from glitchrun.report.outcome import gates_outcome
from glitchrun.spec.mlflow_rules import is_reserved
from glitchrun.tracking.description import run_description

KEY = "glitchrun.key"
ATTEMPT = "glitchrun.attempt"
KIND = "glitchrun.kind"
LEDGER = "glitchrun.ledger"
"""Id of the ledger that a run is made from; the run is found again by it."""
DELIVERED = "glitchrun.delivered"
"""The end of the run at the time when all of it, files included, was delivered. Set last."""
REUSED = "glitchrun.reused"
"""The steps that a run did not measure itself, and the runs that did."""
GATES = "glitchrun.gates"
"""pass, fail or inconclusive over all gates of a run; absent if none was evaluated."""
STUDY = "glitchrun.study"
"""The key of the study that a run was added to after it had begun. Set last, when it is there."""
CELL = "glitchrun.cell"
"""The name of the run as a cell of that study."""
CONTINUED = "glitchrun.continued_in"
"""The parent run to which some of the cells of a parent have moved."""
LEFT_OUT = "glitchrun.params_left_out"

DESCRIPTION = "mlflow.note.content"
PARENT = "mlflow.parentRunId"

MAX_NAME = 250
MAX_PARAM = 6_000
MAX_TAG = 8_000
MAX_EXPERIMENT_TAG = 5_000
MAX_PARAMS = 100
"""Params of a run; spec.resolved.yaml contains the rest, and a tag has their number."""

_FORBIDDEN = re.compile(r"[^\w\-./: ]")
_SHOWN_ITEMS = 12
_TABLE = "tokens.json"
_TABLES = "tables"


def valid_name(text: str) -> str:
    """`text` as the name of a param, metric or tag; `_` replaces characters that MLflow forbids."""
    clean = _FORBIDDEN.sub("_", text)
    normal = posixpath.normpath(clean).lstrip("/") if clean else "_"
    return ("_" + normal if normal.startswith(".") else normal)[:MAX_NAME]


def shortened(text: str, limit: int) -> str:
    """`text` within `limit` characters; a shortened text ends with its full length."""
    if len(text) <= limit:
        return text
    end = f"… ({len(text):,} characters in all)"
    return text[: limit - len(end)] + end


def storable(text: str) -> str:
    """`text` with lone surrogates and NUL as escapes: UTF-8 and PostgreSQL cannot store them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def model_name(record: RunRecord) -> str:
    """The short name of the model: the last part of its path."""
    path = str(record.spec.get("model", {}).get("path", "unknown"))
    return path.rstrip("/").rpartition("/")[2] or path


def run_name(name: str, attempt: int) -> str:
    """The name of a run in MLflow."""
    shown = storable(name)
    return shown if attempt == 1 else f"{shown} (attempt {attempt})"


def run_params(record: RunRecord) -> tuple[dict[str, str], int]:
    """The run's params by name, at most `MAX_PARAMS`, and the number that was left out."""
    found: dict[str, str] = {}
    for name, value in _choices(record):
        found.setdefault(valid_name(name), shortened(_param_text(value), MAX_PARAM))
    kept = dict(list(found.items())[:MAX_PARAMS])
    return kept, len(found) - len(kept)


def _choices(record: RunRecord) -> Iterator[tuple[str, Any]]:
    spec = record.spec
    model = spec.get("model", {})
    yield from record.identity.assignments.items()
    yield "model", model_name(record)
    yield "model.quantization", model.get("quantization", "none")
    yield "model.residency", model.get("residency", "auto")
    yield from _flat("model", {key: value for key, value in model.items() if key != "path"})
    yield "template", spec.get("template", "auto")
    if "system" in spec:
        yield "system", spec["system"]
    yield "seed", spec.get("seed", 0)
    yield from _flat("thresholds", spec.get("thresholds", {}))
    yield from _flat("tokens", spec.get("tokens", {}))
    for step in record.steps:
        yield f"{step.id}.strategy", step.strategy
        yield from _flat(step.id, step.params)


def _flat(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(f"{prefix}.{name}", inner)
        elif inner not in (None, {}, []):
            yield f"{prefix}.{name}", inner


def _param_text(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN_ITEMS:
        start = ", ".join(_param_text(item) for item in value[:_SHOWN_ITEMS])
        return f"{len(value):,} items: {start}, …"
    if isinstance(value, list):
        return ", ".join(_param_text(item) for item in value)
    if isinstance(value, bool | Mapping):
        return json.dumps(value, ensure_ascii=False)
    return storable(str(value))


def birth_tags(record: RunRecord, ledger: str) -> dict[str, str]:
    """The tags that a run is created with: its ids and the user.

    Args:
        record: The run.
        ledger: Id of its ledger.
    """
    return {
        LEDGER: ledger,
        KEY: record.identity.key,
        ATTEMPT: str(record.identity.attempt),
        KIND: "run",
        "mlflow.user": storable(_user()),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": storable(record.identity.spec_path),
    }


def run_tags(record: RunRecord) -> dict[str, str]:
    """The tags of a run in its present state.

    The tags of the spec and of `glitchrun tag` keep their names. Tags with reserved names, which
    only specs of earlier versions may have, are left out.
    """
    own = ((valid_name(name), text) for name, text in record.tags.items())
    found = {name: value for name, value in own if not is_reserved(name)}
    found |= {
        "glitchrun.model": model_name(record),
        "glitchrun.model_path": str(record.spec.get("model", {}).get("path", "")),
        "glitchrun.seed": str(record.spec.get("seed", 0)),
        "glitchrun.spec": record.identity.spec_path,
        "glitchrun.version": str(record.environment.get("glitchrun", "")),
        "glitchrun.limit": str(record.spec.get("limit", "")),
        GATES: gates_outcome(record),
        REUSED: ", ".join(
            f"{step.id} from {step.origin} ({step.key}#{step.attempt})"
            for step in record.steps
            if step.reused
        ),
        DESCRIPTION: run_description(record),
    }
    for name, digest in record.identity.digests.items():
        found[f"glitchrun.digest.{valid_name(name)}"] = digest
    found |= _model_tags(record) | _git_tags(record)
    if (record.artifacts / _TABLE).exists():
        found["mlflow.loggedArtifacts"] = _tables(record)
    return {name: shortened(storable(text), MAX_TAG) for name, text in found.items() if text}


def given_tags(record: RunRecord) -> dict[str, str]:
    """The tags that `glitchrun tag` set, as MLflow stores them; those it removed are empty."""
    return {
        valid_name(name): shortened(storable(text), MAX_TAG)
        for name, text in record.tagged.items()
        if not is_reserved(name)
    }


def later_tags(record: RunRecord) -> dict[str, str]:
    """What may change after the end of a run, as MLflow stores it: `given_tags`, and the study that
    the run was added to. They are set last: a run that has them is below the study's parent."""
    found = given_tags(record)
    if former_names(record.folder) and record.identity.parent:
        found[STUDY] = record.identity.parent
        found[CELL] = shortened(storable(record.identity.name), MAX_TAG)
    return found


def has_tags(present: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a run's tags in MLflow are those of `later_tags`."""
    return all(present.get(name, "") == text for name, text in wanted.items())


def _tables(record: RunRecord) -> str:
    """The files that MLflow's table view offers: as many as fit in the tag."""
    names = [file.name for file in sorted((record.artifacts / _TABLES).glob("[!.]*.json"))]
    paths = [_TABLE, *(f"{_TABLES}/{name}" for name in names)]
    listed = [{"path": path, "type": "table"} for path in paths]
    while len(json.dumps(listed)) > MAX_TAG:
        listed.pop()
    return json.dumps(listed)


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
        "glitchrun.residency": model.residency,
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
    except (KeyError, OSError, ImportError):  # the user has no name in the system: a container
        return "unknown"
