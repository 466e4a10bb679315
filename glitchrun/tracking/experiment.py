"""The MLflow experiment of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from glitchrun.errors import DeletedInMlflow, TrackingUnavailable
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking import limits, view
from glitchrun.tracking.metrics import columns, points
from glitchrun.tracking.note import paragraphs
from glitchrun.tracking.store import Store

NOTE = "mlflow.note.content"
_OUR_NOTE = "glitchrun.note"
"""Digest of the description that glitchrun wrote: another one is a person's and stays."""


def find_or_create(record: RunRecord, store: Store) -> str:
    """The id of the experiment. To be called where no other process does.

    Raises:
        TrackingUnavailable: it was deleted in MLflow, which keeps its name taken; DeletedInMlflow
            where the run had been there.
    """
    name = record.identity.experiment
    found = store.client.get_experiment_by_name(name)
    if found is None:
        tags = {"mlflow.experimentKind": "custom_model_development"}
        location = store.artifact_location(record)
        created = store.client.create_experiment(name, artifact_location=location, tags=tags)
        return str(created)
    if found.lifecycle_stage != "active":
        kind = DeletedInMlflow if record.delivered_to else TrackingUnavailable
        raise kind(
            f"the experiment {name!r} was deleted in MLflow; restore it with: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


def describe(record: RunRecord, experiment_id: str, store: Store) -> None:
    """Writes the experiment's description and saved view, where they changed."""
    tags: Mapping[str, str] = store.client.get_experiment(experiment_id).tags
    for name, text in {**_note_tags(record, tags), **_view_tag(record, tags)}.items():
        store.client.set_experiment_tag(experiment_id, name, text)


def _note_tags(record: RunRecord, tags: Mapping[str, str]) -> dict[str, str]:
    text = limits.value(paragraphs(record.identity.description), limits.EXPERIMENT_TAG)
    before = tags.get(NOTE, "")
    if not text or text == before or (before and _digest(before) != tags.get(_OUR_NOTE)):
        return {}
    return {NOTE: text, _OUR_NOTE: _digest(text)}


def _view_tag(record: RunRecord, tags: Mapping[str, Any]) -> dict[str, str]:
    names = {point.key for point in points(record)}
    shown = [name for name in names if name.rpartition("/")[2] in columns()]
    swept = [limits.key(name) for name in record.identity.assignments]
    state = view.view(shown, swept, record.started_at, tags.get(view.TAG))
    return {view.TAG: state} if state else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
