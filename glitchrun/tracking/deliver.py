"""Delivers a run's record to its MLflow run. Repeating a delivery changes nothing.

Everything is looked up before it is created, and the ledger fixes value, time and step of every
metric point. So a delivery may be killed anywhere, and the next one completes it:

1. `begin` finds or creates experiment, parent run and run, and sets the params.
2. `advance` logs tags and metric points; the tracker repeats it while the run grows.
3. `complete` logs model metrics, dataset, files and status, removes tags, and updates parent
   and experiment.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.errors import DeletedInMlflow
from glitchrun.ledger import mark_delivered
from glitchrun.ledger.identity import former_names
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking import experiment, mlflow_run, parent
from glitchrun.tracking.metric_series import Point, last_change, model_metrics, points
from glitchrun.tracking.params_and_tags import (
    DELIVERED,
    LEFT_OUT,
    PARENT,
    birth_tags,
    later_tags,
    model_name,
    run_name,
    run_params,
    run_tags,
    valid_name,
)
from glitchrun.tracking.store import Store, unavailable


@dataclass(frozen=True, slots=True)
class Delivered:
    """The ids of a run in MLflow."""

    run_id: str
    experiment_id: str
    parent_id: str | None
    complete: bool
    """Whether the run is over and MLflow has all of it, including its files."""


def deliver(record: RunRecord, store: Store, *, restore: bool = False) -> Delivered:
    """Brings MLflow to the state of the record, and records the ids in the run's folder.

    Args:
        record: The run.
        store: The open store.
        restore: Whether to restore a run that was deleted in MLflow.

    Raises:
        DeletedInMlflow: the run was deleted in MLflow, and `restore` is false.
        TrackingUnavailable: the store failed; call again once it works.
    """
    with unavailable(store.uri):
        target = begin(record, store, restore=restore)
        advance(record, target, store)
        return complete(record, target, store)


def refresh(record: RunRecord, store: Store, *, restore: bool = False) -> Delivered:
    """Brings what may change after the end of a run up to date: its parent and `later_tags`.
    MLflow must have the rest already.

    Args:
        record: The run.
        store: The open store.
        restore: Whether to restore a run that was deleted in MLflow.

    Raises:
        DeletedInMlflow: the run was deleted in MLflow, and `restore` is false.
        TrackingUnavailable: the store failed; call again once it works.
    """
    with unavailable(store.uri):
        target = store.exclusively(lambda: _target(record, store, restore))
        _log_params(record, target.run, store)
        store.exclusively(lambda: _update_shared(record, target, store))
        mlflow_run.set_tags(target.run, later_tags(record), store)
    mark_delivered(record.folder, _ids(record, target) | {"ending": record.ending})
    above_id = target.parent.info.run_id if target.parent else None
    return Delivered(target.run.info.run_id, target.experiment_id, above_id, True)


@dataclass(frozen=True, slots=True)
class Target:
    """The MLflow run that a record is delivered to."""

    experiment_id: str
    run: Any
    parent: Any | None


def begin(record: RunRecord, store: Store, *, restore: bool = False) -> Target:
    """Finds or creates the experiment, the parent and the run, and sets the params.

    Raises:
        DeletedInMlflow: the run was deleted in MLflow, and `restore` is false.
        TrackingUnavailable: the experiment was deleted in MLflow, or the store is locked.
    """
    target = store.exclusively(lambda: _target(record, store, restore))
    _log_params(record, target.run, store)
    if record.status == mlflow_run.RUNNING:
        mlflow_run.set_status(target.run, mlflow_run.RUNNING, None, store)
    mark_delivered(record.folder, _ids(record, target))
    return target


def _target(record: RunRecord, store: Store, restore: bool) -> Target:
    experiment_id = experiment.find_or_create(record, store)
    birth = birth_tags(record, mlflow_run.ledger_id(record, store.root))
    own = mlflow_run.find_run(birth, experiment_id, store, record.delivered_to.get("run_id"))
    if own is not None and mlflow_run.is_deleted(own):
        if not restore:
            raise DeletedInMlflow(
                "the run was deleted in MLflow; restore it with: "
                f"glitchrun sync {record.identity.key[:12]}#{record.identity.attempt} --again"
            )
        store.client.restore_run(own.info.run_id)
        own = store.client.get_run(own.info.run_id)
    above = parent.open_parent(record, own, experiment_id, store, restore=restore)
    if own is None:
        birth |= {PARENT: above.info.run_id} if above else {}
        own = mlflow_run.create_run(birth, _name(record), record.started_at, experiment_id, store)
    elif above is not None:
        own = parent.move(own, above, record, store)
    return Target(experiment_id, own, above)


def advance(
    record: RunRecord, target: Target, store: Store, seen: Collection[Point] = ()
) -> list[Point]:
    """Logs the record's tags and the points that are not in `seen`. Returns these points."""
    from mlflow.entities import Metric, RunTag

    fresh = [point for point in points(record) if point not in seen]
    store.client.log_batch(
        target.run.info.run_id,
        metrics=[Metric(valid_name(p.key), p.value, p.at, p.step) for p in fresh],
        tags=[RunTag(name, text) for name, text in run_tags(record).items()],
    )
    return fresh


def complete(record: RunRecord, target: Target, store: Store) -> Delivered:
    """Logs model metrics, dataset, files and status, and updates parent and experiment.

    Raises:
        TrackingUnavailable: the store is locked.
    """
    client, run_id = store.client, target.run.info.run_id
    metrics, at = model_metrics(record), last_change(record)
    now = client.get_run(run_id)
    mlflow_run.log_changed(now, metrics, at, store)
    mlflow_run.set_tags(now, later_tags(record), store)
    store.exclusively(lambda: _log_dataset(record, run_id, store))
    for file, folder in _files(record.artifacts):
        client.log_artifact(run_id, str(file), folder)
    mlflow_run.set_status(client.get_run(run_id), record.status, record.ended_at, store)
    store.exclusively(lambda: _update_shared(record, target, store))
    is_over = record.ended_at is not None
    if is_over:
        client.set_tag(run_id, DELIVERED, record.ending)
    above_id = target.parent.info.run_id if target.parent else None
    ending = {"ending": record.ending} if is_over else {}
    mark_delivered(record.folder, _ids(record, target) | ending)
    return Delivered(run_id, target.experiment_id, above_id, is_over)


def _update_shared(record: RunRecord, target: Target, store: Store) -> None:
    """Updates what several runs share: the experiment and the parent run."""
    experiment.describe(record, target.experiment_id, store)
    if target.parent is not None:
        above = store.client.get_run(target.parent.info.run_id)
        parent.sum_up(record, above, target.experiment_id, store)


def _ids(record: RunRecord, target: Target) -> dict[str, str]:
    """MLflow's ids, and the ledger's own id in case run.json and the ledger lose it."""
    ids = {"run_id": target.run.info.run_id, "experiment_id": target.experiment_id}
    ids |= {"parent_id": target.parent.info.run_id} if target.parent else {}
    if former_names(record.folder):
        ids |= {"study": record.identity.parent or "", "cell": record.identity.name}
    return ids | ({"ledger": record.identity.ledger} if record.identity.ledger else {})


def _name(record: RunRecord) -> str:
    return run_name(record.identity.name, record.identity.attempt)


def _log_params(record: RunRecord, own: Any, store: Store) -> None:
    """Logs the params that the run lacks: MLflow accepts each one only once."""
    from mlflow.entities import Param, RunTag

    found, left_out = run_params(record)
    missing = [Param(name, text) for name, text in found.items() if name not in own.data.params]
    counted = [RunTag(LEFT_OUT, str(left_out))] if left_out else []
    store.client.log_batch(own.info.run_id, params=missing, tags=counted)


def _log_dataset(record: RunRecord, run_id: str, store: Store) -> None:
    """Logs the vocabulary under test as the run's dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if record.model is None:
        return
    digest = str(record.identity.digests.get("model", "unknown"))[:36]
    dataset = Dataset(
        name=f"vocabulary of {model_name(record)}"[:500],
        digest=digest,
        source_type="model",
        source=json.dumps({"path": record.spec.get("model", {}).get("path")}),
        profile=json.dumps({"tokens": record.model.vocabulary_size}),
    )
    given = DatasetInput(dataset, [InputTag("mlflow.data.context", "under test")])
    store.client.log_inputs(run_id, [given])


def _files(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Every file and its folder in MLflow. Incomplete files begin with a dot and are left out."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            inside = file.relative_to(folder).parent.as_posix()
            yield file, None if inside == "." else inside
