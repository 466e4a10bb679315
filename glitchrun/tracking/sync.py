"""Delivers runs afterwards, when the store was down or the run's process died; sets tags of runs
that MLflow has, and deletes such runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from glitchrun.errors import DeletedInMlflow, TrackingUnavailable
from glitchrun.ledger import RunRecord, is_held, read_run
from glitchrun.ledger.folders import study_folder
from glitchrun.tracking import mlflow_run
from glitchrun.tracking.address import delivery_uri, sqlite_path
from glitchrun.tracking.deliver import deliver, refresh
from glitchrun.tracking.mlflow_run import ledger_id
from glitchrun.tracking.params_and_tags import (
    DELIVERED,
    LEDGER,
    PARENT,
    birth_tags,
    given_tags,
    has_tags,
    later_tags,
)
from glitchrun.tracking.parent import deliver_study, without_cell
from glitchrun.tracking.store import Store, ensure_store, open_store, unavailable


@dataclass(frozen=True, slots=True)
class Synced:
    """The outcome of delivering one run."""

    record: RunRecord
    outcome: str
    """delivered, there already, running (its own process delivers it), deleted (by somebody in
    MLflow) or failed."""
    detail: str = ""
    """MLflow's run id if delivered; the message if deleted or failed."""


def sync(
    records: Sequence[RunRecord],
    root: Path,
    *,
    to: str | None = None,
    again: bool = False,
    restore: bool = False,
) -> Iterator[Synced]:
    """Delivers the runs that their stores do not have completely; yields the outcome of each.

    Args:
        records: Runs as read from their folders.
        root: Tracking root.
        to: URI of one store for all runs; None for the store that each run belongs to.
        again: Whether to deliver also what the store has completely.
        restore: Whether to restore runs that were deleted in the store.
    """
    running = [record for record in records if _is_running(record)]
    yield from (Synced(record, "running") for record in running)
    by_store: list[tuple[str, RunRecord]] = []
    for record in records:
        if record in running:
            continue
        try:
            by_store.append((to or delivery_uri(record.identity.tracking_uri, root), record))
        except TrackingUnavailable as exc:
            yield Synced(record, "failed", str(exc))
    for uri, group in groupby(sorted(by_store, key=lambda pair: pair[0]), lambda pair: pair[0]):
        yield from _to_store(uri, [record for _, record in group], root, again, restore)


def _is_running(record: RunRecord) -> bool:
    return record.status == "RUNNING" and is_held(record.folder.parent)


def _to_store(
    uri: str, records: list[RunRecord], root: Path, again: bool, restore: bool
) -> Iterator[Synced]:
    try:
        ensure_store(uri, root)
        store = open_store(uri, root)
        experiments = {record.identity.experiment for record in records}
        complete = {} if again or restore else _complete_runs(experiments, store)
    except TrackingUnavailable as exc:
        yield from (Synced(record, "failed", str(exc)) for record in records)
        return
    changed: set[str | None] = set()
    for record in records:
        yield (synced := _deliver_one(record, store, complete, restore))
        if synced.outcome == "delivered":
            changed.add(record.identity.parent)
    yield from _studies(records, store, changed)


def _studies(
    records: list[RunRecord], store: Store, changed: Collection[str | None]
) -> Iterator[Synced]:
    """Delivers the reports of the studies that the runs belong to; yields failures. The delivery of
    a cell has replaced the description of its parent, which is `changed`."""
    by_parent = {one.identity.parent: one for one in records if one.identity.parent}
    for parent, record in by_parent.items():
        folder = study_folder(store.root, str(parent))
        if not (folder / "study.md").exists():
            continue
        try:
            deliver_study(read_run(record.folder), folder, store, again=parent in changed)
        except TrackingUnavailable as exc:
            yield Synced(record, "failed", f"the report of the study: {exc}")


def _deliver_one(
    record: RunRecord, store: Store, complete: Mapping[str, Mapping[str, str]], restore: bool
) -> Synced:
    try:
        tags = complete.get(ledger_id(record, store.root), {})
        send = deliver
        if tags.get(DELIVERED) == record.ending:
            if has_tags(tags, later_tags(record)):
                return Synced(record, "there already")
            send = refresh
        return Synced(record, "delivered", send(record, store, restore=restore).run_id)
    except DeletedInMlflow as exc:
        return Synced(record, "deleted", str(exc))
    except TrackingUnavailable as exc:
        return Synced(record, "failed", str(exc))


def _complete_runs(experiments: set[str], store: Store) -> dict[str, Mapping[str, str]]:
    """The tags of the runs that the store has completely, by the id of the ledger."""
    found: dict[str, Mapping[str, str]] = {}
    with unavailable(store.uri):
        known = [store.client.get_experiment_by_name(name) for name in sorted(experiments)]
        ids = [one.experiment_id for one in known if one and one.lifecycle_stage == "active"]
        token = None
        while ids:
            page = store.client.search_runs(ids, f"tags.`{DELIVERED}` LIKE '%'", page_token=token)
            for run in page:
                found[run.data.tags.get(LEDGER, "")] = run.data.tags
            token = page.token
            if not token:
                break
    return found


def close_dead_runs(records: Sequence[RunRecord], root: Path) -> list[str]:
    """Ends runs in MLflow that are RUNNING there although their process died.

    Args:
        records: The runs that `glitchrun.ledger.mark_killed` returned.
        root: Tracking root.

    Returns:
        Messages about runs that could not be delivered; `glitchrun sync` tries them again.
    """
    failures = []
    for record in records:
        try:
            uri = delivery_uri(record.identity.tracking_uri, root)
            ensure_store(uri, root)
            deliver(record, open_store(uri, root))
        except DeletedInMlflow:
            continue  # the run stays deleted
        except TrackingUnavailable as exc:
            failures.append(f"{record.identity.name}: {exc}")
    return failures


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
            mlflow_run.set_tags(found.run, given_tags(record), found.store)
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
            lambda: without_cell(record, above, found.experiment_id, store)
        )
