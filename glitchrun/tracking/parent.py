"""The parent run of a matrix in MLflow: a table of its cells, made from their MLflow runs, and the
study's report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glitchrun.ledger.identity import former_names
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking.description import escaped
from glitchrun.tracking.metric_series import column_order, columns, headline
from glitchrun.tracking.mlflow_run import (
    RUNNING,
    create_run,
    find_run,
    is_deleted,
    log_changed,
    parent_id,
    run_by_id,
    set_status,
)
from glitchrun.tracking.params_and_tags import (
    ATTEMPT,
    CONTINUED,
    DESCRIPTION,
    KEY,
    KIND,
    LEDGER,
    MAX_TAG,
    PARENT,
    birth_tags,
    run_name,
    shortened,
    valid_name,
)
from glitchrun.tracking.store import Store, unavailable

SUMMARY = "sweep_summary.json"
_MOST_COLUMNS = 6
_HIGHEST = ("confirmed", "glitch", "asr_mean", "glitch_rate", "tokens_per_second")
"""Metrics whose largest value the parent shows."""


def open_parent(
    record: RunRecord, own: Any | None, experiment_id: str, store: Store, *, restore: bool
) -> Any | None:
    """The parent's MLflow run, found or created.

    None for a run outside a matrix, and for a parent that was deleted in MLflow without `restore`.

    Args:
        record: A cell of the matrix.
        own: The cell's MLflow run, if it exists: it names a parent that an earlier version created.
        experiment_id: MLflow's id.
        store: The open store.
        restore: Whether to restore a deleted parent.

    Raises:
        TrackingUnavailable: the project's id cannot be read or written.
    """
    if record.identity.parent is None:
        return None
    ids = {KEY: record.identity.parent, ATTEMPT: "1", KIND: "matrix"}
    tags = birth_tags(record, parent_id(record.identity.parent, store.root)) | ids
    found = find_run(tags, experiment_id, store, own.data.tags.get(PARENT) if own else None)
    sweep = record.identity.sweep
    if found is None:
        return create_run(tags, sweep, record.started_at, experiment_id, store)
    if is_deleted(found):
        if not restore:
            return None
        store.client.restore_run(found.info.run_id)
    if found.info.run_name != sweep and str(found.info.run_name).startswith("sweep over "):
        store.client.update_run(found.info.run_id, name=sweep)  # the study has got another axis
    return found


def move(own: Any, above: Any, record: RunRecord, store: Store) -> Any:
    """Makes the run of a cell a child of `above` under the cell's name. Returns the run.

    A parent whose cells have all moved is deleted in MLflow; another one names the new parent.

    Args:
        own: The cell's MLflow run.
        above: The MLflow run of its study.
        record: The cell.
        store: The open store.
    """
    run_id, above_id = own.info.run_id, above.info.run_id
    names = {run_name(name, record.identity.attempt) for name in former_names(record.folder)}
    name = run_name(record.identity.name, record.identity.attempt)
    if own.info.run_name in names - {name}:  # else a user has renamed it
        store.client.update_run(run_id, name=name)
    former = own.data.tags.get(PARENT)
    if former == above_id:
        return own
    store.client.set_tag(run_id, PARENT, above_id)
    if CONTINUED in above.data.tags:  # its cells come back
        store.client.delete_tag(above_id, CONTINUED)
    before = run_by_id(former, store) if former else None
    if before is not None and not is_deleted(before):
        store.client.set_tag(former, CONTINUED, above_id)
        without_cell(record, former, own.info.experiment_id, store)
    return store.client.get_run(run_id)


def sum_up(record: RunRecord, parent: Any, experiment_id: str, store: Store) -> None:
    """Updates the parent's summary, highest values and status from the MLflow runs of its cells."""
    run_id = parent.info.run_id
    children = _children(run_id, experiment_id, store)
    swept = [valid_name(name) for name in record.identity.assignments]
    shown = _columns(children)
    moved = parent.data.tags.get(CONTINUED)
    link = f"Some of its cells are now part of the study `{moved}`.\n\n" if moved else ""
    text = shortened(link + _markdown(children, shown), MAX_TAG)
    store.client.set_tag(run_id, DESCRIPTION, text)
    store.client.log_text(run_id, _summary(children, swept), SUMMARY)
    ended = [child.info.end_time for child in children if child.info.end_time]
    best = _best(children, shown)
    log_changed(parent, best, max(ended, default=record.started_at), store)
    status = _status(children)
    set_status(parent, status, None if status == RUNNING else max(ended, default=None), store)


def deliver_study(record: RunRecord, folder: Path, store: Store, *, again: bool = False) -> None:
    """Logs the study's report to the parent's MLflow run, and its first tables as the description,
    unless the store has them already.

    Args:
        record: A cell of the study that was delivered.
        folder: The folder of the report. A file in it says what was delivered, and where to.
        store: The open store.
        again: Whether to deliver it even if the file says that the store has it.

    Raises:
        TrackingUnavailable: the store failed; call again once it works.
    """
    text = (folder / "study.md").read_text(encoding="utf-8")
    stamp = f"{store.uri.rpartition('@')[2]} {hashlib.sha256(text.encode()).hexdigest()}\n"
    marker = folder / ".delivered"
    if not again and marker.exists() and marker.read_text(encoding="utf-8") == stamp:
        return
    with unavailable(store.uri):
        own = run_by_id(record.delivered_to.get("run_id", ""), store)
        above = run_by_id(own.data.tags.get(PARENT, ""), store) if own else None
        if above is None or is_deleted(above):
            return
        for file in sorted(folder.glob("study.*")):
            store.client.log_artifact(above.info.run_id, str(file))
        store.client.set_tag(above.info.run_id, DESCRIPTION, _first_sections(text))
    marker.write_text(stamp, encoding="utf-8")


def _first_sections(text: str) -> str:
    """As many whole sections of the Markdown as fit into a description."""
    head, *others = text.split("\n### ")
    shown = head.rstrip() + "\n\nThe whole report is `study.html` under Artifacts."
    for section in others:
        if len(shown) + len(section) + 5 > MAX_TAG:
            break
        shown += f"\n\n### {section.rstrip()}"
    return shortened(shown, MAX_TAG)


def without_cell(record: RunRecord, parent_id: str, experiment_id: str, store: Store) -> bool:
    """Updates the parent of a cell that was deleted or has moved. Returns whether the parent was
    deleted too, because no other cell is left.

    Args:
        record: The cell.
        parent_id: MLflow's id of the parent.
        experiment_id: MLflow's id.
        store: The open store.
    """
    above = run_by_id(parent_id, store)
    if above is None or is_deleted(above) or above.data.tags.get(KIND) != "matrix":
        return False
    if _children(parent_id, experiment_id, store):
        sum_up(record, above, experiment_id, store)
        return False
    if LEDGER in above.data.tags:  # later cells must not take this run for one that a user deleted
        store.client.delete_tag(parent_id, LEDGER)
    store.client.delete_run(parent_id)
    return True


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
    shown = [name for name in names if name.rpartition("/")[2] in columns()]
    return sorted(shown, key=column_order)[:_MOST_COLUMNS]


def _best(children: Sequence[Any], names: Sequence[str]) -> dict[str, float]:
    """The largest value of each metric in `_HIGHEST` over the finished children."""
    best: dict[str, float] = {}
    for name in names:
        if name.rpartition("/")[2] not in _HIGHEST:
            continue
        values = [
            child.data.metrics[name]
            for child in children
            if child.info.status == "FINISHED" and name in child.data.metrics
        ]
        if values:
            best[f"highest/{name}"] = max(values)
    return best


def _markdown(children: Sequence[Any], names: Sequence[str]) -> str:
    heads = ["run", *names, "status"]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for child in children:
        numbers = [_number(child.data.metrics, name) for name in names]
        cells = [escaped(str(child.info.run_name)), *numbers, child.info.status]
        rows.append(f"| {' | '.join(str(cell).replace('|', '¦') for cell in cells)} |")
    result = _leaders(children, names) if names else "No cell has results yet."
    return f"{len(children)} runs of one matrix. {result}".rstrip() + "\n\n" + "\n".join(rows)


def _leaders(children: Sequence[Any], names: Sequence[str]) -> str:
    """The runs with the highest main result, ties included; empty without a main result."""
    first = headline(dict.fromkeys(reversed(names)))
    known = [child for child in children if first in child.data.metrics]
    if first is None or not known:
        return ""
    highest = max(child.data.metrics[first] for child in known)
    leaders = [child for child in known if child.data.metrics[first] == highest]
    value = f"{escaped(first)} = {highest:,.6g}"
    if len(leaders) == 1:
        return f"Highest {value}: **{escaped(str(leaders[0].info.run_name))}**."
    if len(leaders) == len(known):
        return f"All {len(known)} runs with a result are tied at {value}."
    tied = ", ".join(f"**{escaped(str(one.info.run_name))}**" for one in leaders)
    return f"{len(leaders)} runs are tied at the highest {value}: {tied}."


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
