"""Delivering afterwards what could not be delivered when it happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from glitchrun.errors import DeletedInMlflow, TrackingUnavailable
from glitchrun.ledger import RunRecord, is_held
from glitchrun.tracking.deliver import deliver
from glitchrun.tracking.identity import ledger_id
from glitchrun.tracking.store import Store, delivery_uri, ensure_store, open_store, unavailable
from glitchrun.tracking.tags import DELIVERED, LEDGER


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one run."""

    record: RunRecord
    outcome: str
    """delivered, there already, running (its own process delivers it), deleted (in MLflow, by
    somebody) or failed."""
    detail: str = ""


def sync(
    records: Sequence[RunRecord],
    root: Path,
    *,
    to: str | None = None,
    again: bool = False,
    restore: bool = False,
) -> Iterator[Synced]:
    """Delivers each record that its store does not have whole.

    Args:
        records: Runs as read from their folders.
        root: Tracking root.
        to: One store for all of them, instead of the one each belongs to.
        again: Deliver also what the store says it has.
        restore: Bring back what was deleted in the store.
    """
    running = [record for record in records if _is_running(record)]
    yield from (Synced(record, "running") for record in running)
    placed: list[tuple[str, RunRecord]] = []
    for record in records:
        if record in running:
            continue
        try:
            placed.append((to or delivery_uri(record.identity.tracking_uri, root), record))
        except TrackingUnavailable as exc:
            yield Synced(record, "failed", str(exc))
    for uri, group in groupby(sorted(placed, key=lambda pair: pair[0]), lambda pair: pair[0]):
        yield from _to_store(uri, [record for _, record in group], root, again, restore)


def _is_running(record: RunRecord) -> bool:
    return record.status == "RUNNING" and is_held(record.folder.parent)


def _to_store(
    uri: str, records: list[RunRecord], root: Path, again: bool, restore: bool
) -> Iterator[Synced]:
    try:
        ensure_store(uri, root)
        store = open_store(uri, root)
        there = {} if again or restore else _stamps({r.identity.experiment for r in records}, store)
    except TrackingUnavailable as exc:
        yield from (Synced(record, "failed", str(exc)) for record in records)
        return
    for record in records:
        yield _one(record, store, there, restore)


def _one(record: RunRecord, store: Store, there: Mapping[str, str], restore: bool) -> Synced:
    try:
        if there.get(ledger_id(record, store.root)) == record.ending:
            return Synced(record, "there already")
        return Synced(record, "delivered", deliver(record, store, restore=restore).run_id)
    except DeletedInMlflow as exc:
        return Synced(record, "deleted", str(exc))
    except TrackingUnavailable as exc:
        return Synced(record, "failed", str(exc))


def _stamps(experiments: set[str], store: Store) -> dict[str, str]:
    """What the store has whole: how each ledger's run had ended."""
    found: dict[str, str] = {}
    with unavailable(store.uri):
        known = [store.client.get_experiment_by_name(name) for name in sorted(experiments)]
        ids = [one.experiment_id for one in known if one and one.lifecycle_stage == "active"]
        token = None
        while ids:
            page = store.client.search_runs(ids, f"tags.`{DELIVERED}` LIKE '%'", page_token=token)
            for run in page:
                tags = run.data.tags
                found[tags.get(LEDGER, "")] = tags[DELIVERED]
            token = page.token
            if not token:
                break
    return found
