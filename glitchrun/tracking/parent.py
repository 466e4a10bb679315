"""The parent run of a matrix: its cells side by side, from what MLflow holds of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glitchrun.ledger.record import RunRecord
from glitchrun.tracking import limits, metrics
from glitchrun.tracking.identity import parent_id
from glitchrun.tracking.metrics import column_order, headline
from glitchrun.tracking.note import escaped
from glitchrun.tracking.run import RUNNING, create, find, is_deleted, log_state, set_status
from glitchrun.tracking.store import Store
from glitchrun.tracking.tags import ATTEMPT, KEY, KIND, NOTE, PARENT, birth_tags

SUMMARY = "sweep_summary.json"
_MOST_COLUMNS = 6
_BEST = ("confirmed", "glitch", "asr_mean", "glitch_rate", "tokens_per_second")
"""Metrics of which more is better: more found with the same work."""


def open_parent(
    record: RunRecord, own: Any | None, experiment_id: str, store: Store, *, restore: bool
) -> Any | None:
    """The parent's MLflow run; None for a run that has none, or whose parent was deleted in MLflow
    and is not to be brought back.

    Args:
        record: The run below it.
        own: That run in MLflow, where it is there: it knows a parent of earlier versions.
        experiment_id: MLflow's id.
        store: Where to look.
        restore: Bring it back where it was deleted.
    """
    if record.identity.parent is None:
        return None
    ids = {KEY: record.identity.parent, ATTEMPT: "1", KIND: "matrix"}
    tags = birth_tags(record, parent_id(record.identity.parent, store.root)) | ids
    found = find(tags, experiment_id, store, own.data.tags.get(PARENT) if own else None)
    if found is None:
        swept = " × ".join(name.rpartition(".")[2] for name in record.identity.assignments)
        name = f"sweep over {swept}" if swept else "sweep"
        return create(tags, name, record.started_at, experiment_id, store)
    if is_deleted(found):
        if not restore:
            return None
        store.client.restore_run(found.info.run_id)
    return found


def sum_up(record: RunRecord, parent: Any, experiment_id: str, store: Store) -> None:
    """Writes the parent's summary, best values and status from its children in MLflow."""
    run_id = parent.info.run_id
    children = _children(run_id, experiment_id, store)
    swept = [limits.key(name) for name in record.identity.assignments]
    columns = _columns(children)
    text = limits.value(_markdown(children, columns), limits.TAG)
    store.client.set_tag(run_id, NOTE, text)
    store.client.log_text(run_id, _summary(children, swept), SUMMARY)
    ended = [child.info.end_time for child in children if child.info.end_time]
    log_state(parent, _best(children, columns), max(ended, default=record.started_at), store)
    status = _status(children)
    set_status(parent, status, None if status == RUNNING else max(ended, default=None), store)


def _children(run_id: str, experiment_id: str, store: Store) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = store.client.search_runs(
            [experiment_id], f"tags.`{PARENT}` = '{run_id}'", page_token=token
        )
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _columns(children: Sequence[Any]) -> list[str]:
    names = {name for child in children for name in child.data.metrics}
    shown = [name for name in names if name.rpartition("/")[2] in metrics.columns()]
    return sorted(shown, key=column_order)[:_MOST_COLUMNS]


def _best(children: Sequence[Any], columns: Sequence[str]) -> dict[str, float]:
    """The largest of each column over the finished children."""
    best: dict[str, float] = {}
    for name in columns:
        if name.rpartition("/")[2] not in _BEST:
            continue
        values = [
            child.data.metrics[name]
            for child in children
            if child.info.status == "FINISHED" and name in child.data.metrics
        ]
        if values:
            best[f"best/{name}"] = max(values)
    return best


def _markdown(children: Sequence[Any], columns: Sequence[str]) -> str:
    heads = ["run", *columns, "state"]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for child in children:
        numbers = [_number(child.data.metrics, name) for name in columns]
        cells = [escaped(str(child.info.run_name)), *numbers, child.info.status]
        rows.append(f"| {' | '.join(str(cell).replace('|', '¦') for cell in cells)} |")
    first = headline(dict.fromkeys(reversed(columns)))
    lead = max(
        (child for child in children if first in child.data.metrics),
        key=lambda child: child.data.metrics[first],
        default=None,
    )
    said = f"Most {escaped(str(first))}: **{escaped(str(lead.info.run_name))}**." if lead else ""
    if not columns:
        said = "No cell has results yet."
    return f"{len(children)} runs of one matrix. {said}".rstrip() + "\n\n" + "\n".join(rows)


def _number(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(name)
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


def _summary(children: Sequence[Any], swept: Sequence[str]) -> str:
    rows = [
        {
            "run": child.info.run_name,
            "run_id": child.info.run_id,
            "status": child.info.status,
            "params": {name: child.data.params.get(name) for name in swept},
            "metrics": {
                name: value
                for name, value in sorted(child.data.metrics.items())
                if not name.startswith("system/")
            },
        }
        for child in children
    ]
    return json.dumps({"runs": rows}, indent=1, ensure_ascii=False) + "\n"


def _status(children: Sequence[Any]) -> str:
    states = {child.info.status for child in children}
    return next((one for one in (RUNNING, "FAILED", "KILLED") if one in states), "FINISHED")
