"""An MLflow run: found by the id of its ledger or created, and updated.

A run's key identifies what it computes, so two projects with the same spec have the same key. A
server that both deliver to must still tell their runs apart. Each ledger therefore has its own id.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glitchrun.errors import TrackingUnavailable
from glitchrun.ledger import RunRecord
from glitchrun.ledger.files import IDENTITY, write_atomically
from glitchrun.ledger.lock import store_lock
from glitchrun.tracking.params_and_tags import ATTEMPT, KEY, LEDGER
from glitchrun.tracking.store import Store

RUNNING = "RUNNING"
PROJECT = ".project-id"
"""File under the tracking root; it moves with the project."""
_ID = re.compile(r"[0-9a-f]{32}")


def ledger_id(record: RunRecord, root: Path) -> str:
    """The id of a record's ledger, 32 hex digits.

    Ledgers of earlier versions contain no id. Theirs is a digest of the project's id, the folder
    within the project and the content of `run.json`.

    Args:
        record: The run.
        root: Its tracking root.

    Raises:
        TrackingUnavailable: the project's id cannot be read or written.
    """
    if record.identity.ledger:
        return record.identity.ledger
    folder = record.folder.absolute()
    base = root.absolute()
    place = folder.relative_to(base) if folder.is_relative_to(base) else folder
    try:
        text = (folder / IDENTITY).read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise TrackingUnavailable(f"{exc.filename} cannot be read ({exc.strerror})") from exc
    return _digest(_project_id(root), place.as_posix(), text)


def parent_id(key: str, root: Path) -> str:
    """The id of the parent run of a matrix in this project, 32 hex digits.

    Args:
        key: Key that the cells of the matrix share.
        root: Tracking root.

    Raises:
        TrackingUnavailable: the project's id cannot be read or written.
    """
    return _digest(_project_id(root), "parent", key)


def _project_id(root: Path) -> str:
    """The random id of a tracking root, created on first use."""
    path = root / PROJECT
    try:
        with store_lock(root / f"{PROJECT}.lock"):
            if not path.exists():
                write_atomically(path, f"{uuid.uuid4().hex}\n")
            text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as exc:
        raise TrackingUnavailable(
            f"{path} cannot be read or written ({exc.strerror}); change its permissions"
        ) from exc
    if not _ID.fullmatch(text):
        raise TrackingUnavailable(f"{path} contains no id; delete it: glitchrun makes a new one")
    return text


def _digest(*parts: str) -> str:
    whole = "\0".join(parts)
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def find_run(
    tags: Mapping[str, str], experiment_id: str, store: Store, known_id: str | None = None
) -> Any | None:
    """The MLflow run of a ledger, which may be deleted; None if there is none.

    A server may have created the run twice, after a repeated request whose answer was lost. Then
    this is always the older one.

    Args:
        tags: The run's `birth_tags`.
        experiment_id: MLflow's id.
        store: The open store.
        known_id: MLflow's id of the run, if the ledger recorded one. Earlier versions delivered
            without the ledger's id; this adds it to their run, unless another ledger has done so.
    """
    from mlflow.entities import ViewType

    wanted = f"tags.`{LEDGER}` = '{tags[LEDGER]}'"
    found = store.client.search_runs([experiment_id], wanted, run_view_type=ViewType.ALL)
    if found:
        return min(found, key=lambda run: (is_deleted(run), run.info.start_time, run.info.run_id))
    known = run_by_id(known_id, store) if known_id else None
    if known is None or known.info.experiment_id != experiment_id or LEDGER in known.data.tags:
        return None
    if any(known.data.tags.get(name) != tags[name] for name in (KEY, ATTEMPT)):
        return None
    if not is_deleted(known):
        store.client.set_tag(known.info.run_id, LEDGER, tags[LEDGER])
    return known


def run_by_id(run_id: str, store: Store) -> Any | None:
    """The MLflow run with an id, which may be deleted; None if the store has none."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_run(run_id)
    except MlflowException as exc:
        if exc.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None  # it is in another store, or was removed permanently
        raise


def is_deleted(run: Any) -> bool:
    """Whether somebody deleted the run in MLflow, which keeps deleted runs until `mlflow gc`."""
    return bool(run.info.lifecycle_stage != "active")


def create_run(
    tags: Mapping[str, str], name: str, started_at: int, experiment_id: str, store: Store
) -> Any:
    """Creates an MLflow run and returns it.

    Args:
        tags: The run's `birth_tags`.
        name: Its name in MLflow.
        started_at: Milliseconds since the epoch.
        experiment_id: MLflow's id.
        store: The open store.
    """
    return store.client.create_run(
        experiment_id, start_time=started_at, tags=dict(tags), run_name=name
    )


def set_status(run: Any, status: str, ended_at: int | None, store: Store) -> None:
    """Updates the status and the end time, if they changed.

    A resumed run keeps the end time of its last session until it ends again: MLflow cannot remove
    an end time.

    Args:
        run: The MLflow run.
        status: FINISHED, FAILED, KILLED or RUNNING.
        ended_at: Milliseconds since the epoch.
        store: The open store.
    """
    if status == RUNNING:
        if run.info.status != RUNNING:
            store.client.update_run(run.info.run_id, status=RUNNING)
    elif (status, ended_at) != (run.info.status, run.info.end_time):
        store.client.set_terminated(run.info.run_id, status, ended_at)


def set_tags(run: Any, tags: Mapping[str, str], store: Store) -> None:
    """Sets the tags that differ, and deletes those whose text is empty.

    Args:
        run: The MLflow run, as it is now.
        tags: From `later_tags`.
        store: The open store.
    """
    present, run_id = run.data.tags, run.info.run_id
    for name, text in tags.items():
        if not text and name in present:
            store.client.delete_tag(run_id, name)
        elif text and present.get(name) != text:
            store.client.set_tag(run_id, name, text)


def log_changed(run: Any, values: Mapping[str, float], at: int, store: Store) -> None:
    """Logs metrics that have one value at a time, if they differ from the run's latest values.

    Args:
        run: The MLflow run.
        values: Values by metric.
        at: Milliseconds since the epoch.
        store: The open store.
    """
    from mlflow.entities import Metric

    before = run.data.metrics
    changed = {name: value for name, value in values.items() if before.get(name) != value}
    if changed:
        metrics = [Metric(name, value, at, 0) for name, value in changed.items()]
        store.client.log_batch(run.info.run_id, metrics=metrics)
