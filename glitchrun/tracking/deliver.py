"""One run's record to MLflow, as often as one likes with the same result.

Everything is found before it is created, and what MLflow adds up (metrics) is fixed in value, time
and step by the ledger. So a delivery may be killed anywhere, and the next one completes it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.errors import DeletedInMlflow
from glitchrun.ledger import mark_delivered
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking import experiment, limits, parent, run
from glitchrun.tracking.identity import ledger_id
from glitchrun.tracking.metrics import Point, last_moment, points, state
from glitchrun.tracking.params import model_name, params
from glitchrun.tracking.store import Store, unavailable
from glitchrun.tracking.tags import DELIVERED, PARENT, birth_tags, tags

LEFT_OUT = "glitchrun.params_left_out"


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where a run is in MLflow."""

    run_id: str
    experiment_id: str
    parent_id: str | None
    complete: bool
    """Whether the run is over and all of it, files included, is there."""


def deliver(record: RunRecord, store: Store, *, restore: bool = False) -> Delivered:
    """Brings MLflow to the state of the record, and notes in the run's folder where it is.

    Args:
        record: The run.
        store: Where it goes.
        restore: Bring a run back that was deleted in MLflow.

    Raises:
        DeletedInMlflow: the run was deleted there, and is not to be brought back.
        TrackingUnavailable: the store failed; call again when it is back.
    """
    with unavailable(store.uri):
        place = begin(record, store, restore=restore)
        advance(record, place, store)
        return complete(record, place, store)


@dataclass(frozen=True, slots=True)
class Place:
    """The MLflow run that a record goes to."""

    experiment_id: str
    run: Any
    parent: Any | None


def begin(record: RunRecord, store: Store, *, restore: bool = False) -> Place:
    """Finds or creates the experiment, the parent and the run; tags and params are set.

    Raises:
        DeletedInMlflow: the run was deleted there, and is not to be brought back.
    """
    place = store.exclusively(lambda: _place(record, store, restore))
    _log_params(record, place.run, store)
    if record.status == run.RUNNING:
        run.set_status(place.run, run.RUNNING, None, store)
    mark_delivered(record.folder, _ids(record, place))
    return place


def _place(record: RunRecord, store: Store, restore: bool) -> Place:
    experiment_id = experiment.find_or_create(record, store)
    birth = birth_tags(record, ledger_id(record, store.root))
    own = run.find(birth, experiment_id, store, record.delivered_to.get("run_id"))
    if own is not None and run.is_deleted(own):
        if not restore:
            raise DeletedInMlflow(
                "it was deleted in MLflow, and stays so; bring it back with: "
                f"glitchrun sync {record.identity.key[:12]}#{record.identity.attempt} --again"
            )
        store.client.restore_run(own.info.run_id)
        own = store.client.get_run(own.info.run_id)
    above = parent.open_parent(record, own, experiment_id, store, restore=restore)
    if own is None:
        birth |= {PARENT: above.info.run_id} if above else {}
        own = run.create(birth, _name(record), record.started_at, experiment_id, store)
    return Place(experiment_id, own, above)


def advance(
    record: RunRecord, place: Place, store: Store, seen: Collection[Point] = ()
) -> list[Point]:
    """Logs what the record has by now: tags, and the points that are not in `seen`.

    Returns:
        The points logged.
    """
    from mlflow.entities import Metric, RunTag

    fresh = [point for point in points(record) if point not in seen]
    store.client.log_batch(
        place.run.info.run_id,
        metrics=[Metric(limits.key(p.key), p.value, p.at, p.step) for p in fresh],
        tags=[RunTag(name, text) for name, text in tags(record).items()],
    )
    return fresh


def complete(record: RunRecord, place: Place, store: Store) -> Delivered:
    """Delivers what comes last: model and plan, dataset, files, status, parent, saved view."""
    client, run_id = store.client, place.run.info.run_id
    run.log_state(client.get_run(run_id), state(record), last_moment(record), store)
    store.exclusively(lambda: _log_dataset(record, run_id, store))
    for file, folder in _files(record.artifacts):
        client.log_artifact(run_id, str(file), folder)
    run.set_status(client.get_run(run_id), record.status, record.ended_at, store)
    store.exclusively(lambda: _update_siblings(record, place, store))
    is_over = record.ended_at is not None
    if is_over:
        client.set_tag(run_id, DELIVERED, record.ending)
    above_id = place.parent.info.run_id if place.parent else None
    ending = {"ending": record.ending} if is_over else {}
    mark_delivered(record.folder, _ids(record, place) | ending)
    return Delivered(run_id, place.experiment_id, above_id, is_over)


def _update_siblings(record: RunRecord, place: Place, store: Store) -> None:
    """Updates the records that several runs share: the experiment and the parent run."""
    experiment.describe(record, place.experiment_id, store)
    if place.parent is not None:
        above = store.client.get_run(place.parent.info.run_id)
        parent.sum_up(record, above, place.experiment_id, store)


def _ids(record: RunRecord, place: Place) -> dict[str, str]:
    """Where the run is, and the ledger's own id, should run.json and the ledger lose it."""
    ids = {"run_id": place.run.info.run_id, "experiment_id": place.experiment_id}
    return ids | ({"ledger": record.identity.ledger} if record.identity.ledger else {})


def _name(record: RunRecord) -> str:
    attempt = record.identity.attempt
    name = limits.storable(record.identity.name)
    return name if attempt == 1 else f"{name} (attempt {attempt})"


def _log_params(record: RunRecord, own: Any, store: Store) -> None:
    """Logs the params that are not there yet: MLflow takes each one once."""
    from mlflow.entities import Param, RunTag

    found, left_out = params(record)
    missing = [Param(name, text) for name, text in found.items() if name not in own.data.params]
    counted = [RunTag(LEFT_OUT, str(left_out))] if left_out else []
    store.client.log_batch(own.info.run_id, params=missing, tags=counted)


def _log_dataset(record: RunRecord, run_id: str, store: Store) -> None:
    """The vocabulary under test, as MLflow's dataset of the run."""
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
    """Every file with the folder it goes to; files being written begin with a dot."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            inside = file.relative_to(folder).parent.as_posix()
            yield file, None if inside == "." else inside
