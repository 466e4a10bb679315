"""A run in MLflow: found by its ledger or created, and brought to its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glitchrun.tracking.store import Store
from glitchrun.tracking.tags import ATTEMPT, KEY, LEDGER

RUNNING = "RUNNING"


def find(
    tags: Mapping[str, str], experiment_id: str, store: Store, before: str | None = None
) -> Any | None:
    """The run of a ledger, deleted ones too; None where there is none.

    Should a server have created it twice, by repeating a request whose answer was lost, the older
    one is taken, always.

    Args:
        tags: Those it was created with.
        experiment_id: MLflow's id.
        store: Where to look.
        before: Its id, where the ledger remembers one. Earlier versions delivered without the
            ledger's id: such a run is given it, unless another ledger was faster.
    """
    from mlflow.entities import ViewType

    wanted = f"tags.`{LEDGER}` = '{tags[LEDGER]}'"
    found = store.client.search_runs([experiment_id], wanted, run_view_type=ViewType.ALL)
    if found:
        return min(found, key=lambda run: (is_deleted(run), run.info.start_time, run.info.run_id))
    known = _remembered(before, store) if before else None
    if known is None or known.info.experiment_id != experiment_id or LEDGER in known.data.tags:
        return None
    if any(known.data.tags.get(name) != tags[name] for name in (KEY, ATTEMPT)):
        return None
    if not is_deleted(known):
        store.client.set_tag(known.info.run_id, LEDGER, tags[LEDGER])
    return known


def _remembered(run_id: str, store: Store) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_run(run_id)
    except MlflowException as exc:
        if exc.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None  # it is in another store, or was removed for good
        raise


def is_deleted(run: Any) -> bool:
    """Whether somebody deleted the run in MLflow, which keeps it until it is told to forget."""
    return bool(run.info.lifecycle_stage != "active")


def create(
    tags: Mapping[str, str], name: str, started_at: int, experiment_id: str, store: Store
) -> Any:
    """A new run with these tags."""
    return store.client.create_run(
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
