"""Changes to a run that MLflow has already: its tags, and its deletion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.errors import TrackingUnavailable
from glitchrun.ledger import RunRecord
from glitchrun.tracking import mlflow_run, parent
from glitchrun.tracking.address import delivery_uri, sqlite_path
from glitchrun.tracking.params_and_tags import PARENT, birth_tags, later_tags
from glitchrun.tracking.store import Store, ensure_store, open_store, unavailable


@dataclass(frozen=True, slots=True)
class ExistingRun:
    """A run in an open MLflow store."""

    run: Any
    experiment_id: str
    store: Store

    @property
    def run_id(self) -> str:
        """MLflow's id."""
        return str(self.run.info.run_id)

    @property
    def is_deleted(self) -> bool:
        """Whether it was deleted in MLflow, which keeps deleted runs until `mlflow gc`."""
        return mlflow_run.is_deleted(self.run)


def find(record: RunRecord, root: Path) -> ExistingRun | None:
    """The MLflow run of a record in the store that it belongs to; None if there is none.

    Args:
        record: The run.
        root: Tracking root.

    Raises:
        TrackingUnavailable: the store cannot be reached.
        MissingExtra: mlflow is not installed.
    """
    uri = delivery_uri(record.identity.tracking_uri, root)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        if record.delivered_to:
            raise TrackingUnavailable(f"{path}: the MLflow store of this run is missing")
        return None
    ensure_store(uri, root)
    store = open_store(uri, root)
    with unavailable(uri):
        experiment = store.client.get_experiment_by_name(record.identity.experiment)
        if experiment is None:
            return None
        tags = birth_tags(record, mlflow_run.ledger_id(record, store.root))
        known = record.delivered_to.get("run_id")
        found = mlflow_run.find_run(tags, experiment.experiment_id, store, known)
    return ExistingRun(found, experiment.experiment_id, store) if found else None


def deliver_tags(record: RunRecord, root: Path) -> ExistingRun | None:
    """Brings the tags that `glitchrun tag` set to MLflow. Returns the run, or None if MLflow does
    not have it yet. A deleted run stays as it is.

    Raises:
        TrackingUnavailable: the store cannot be reached.
        MissingExtra: mlflow is not installed.
    """
    found = find(record, root)
    if found is not None and not found.is_deleted:
        with unavailable(found.store.uri):
            mlflow_run.set_tags(found.run, later_tags(record), found.store)
    return found


def delete(found: ExistingRun, record: RunRecord) -> bool:
    """Deletes a run in MLflow, and updates the parent of a matrix. Returns whether the parent was
    deleted too, because no other cell is left.

    Raises:
        TrackingUnavailable: the store failed.
    """
    store = found.store
    above = found.run.data.tags.get(PARENT)
    with unavailable(store.uri):
        if not found.is_deleted:
            store.client.delete_run(found.run_id)
        return bool(above) and store.exclusively(
            lambda: parent.without_cell(record, above, found.experiment_id, store)
        )
