"""A run in MLflow: found by its key or created, and brought to its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glitchrun.tracking.store import Store
from glitchrun.tracking.tags import ATTEMPT, KEY

RUNNING = "RUNNING"


def find(tags: Mapping[str, str], experiment_id: str, store: Store) -> Any | None:
    """The run with this key and attempt; None where there is none, or it was deleted.

    Should a server have created it twice, by repeating a request whose answer was lost, the older
    one is taken, always.
    """
    wanted = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in (KEY, ATTEMPT))
    found = store.client.search_runs([experiment_id], wanted)
    return min(found, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def find_or_create(
    tags: Mapping[str, str], name: str, started_at: int, experiment_id: str, store: Store
) -> Any:
    """The run with these tags' key and attempt."""
    with store.exclusive():
        return find(tags, experiment_id, store) or store.client.create_run(
            experiment_id, start_time=started_at, tags=dict(tags), run_name=name
        )


def set_status(run: Any, status: str, ended_at: int | None, store: Store) -> None:
    """Writes a status, and the time of the end, where they changed.

    A run that goes on keeps the time of its earlier end until the next: MLflow cannot take it back.
    """
    if status == RUNNING:
        if run.info.status != RUNNING:
            store.client.update_run(run.info.run_id, status=RUNNING)
    elif (status, ended_at) != (run.info.status, run.info.end_time):
        store.client.set_terminated(run.info.run_id, status, ended_at)


def log_state(run: Any, values: Mapping[str, float], at: int, store: Store) -> None:
    """Logs numbers that have one value at a time, where they differ from what is there."""
    from mlflow.entities import Metric

    before = run.data.metrics
    changed = {name: value for name, value in values.items() if before.get(name) != value}
    if changed:
        metrics = [Metric(name, value, at, 0) for name, value in changed.items()]
        store.client.log_batch(run.info.run_id, metrics=metrics)
