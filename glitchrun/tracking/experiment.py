"""The MLflow experiment of a run: its description, its saved table view, and links to it.

MLflow's UI keeps a shared view in a tag of the experiment: `{"name", "createdAt", "updatedAt",
"state"}`, where the state is `deflate;` and base64 of zlib of JSON. This is not documented; it was
read from the UI of MLflow 3.17. Another UI shows its own default table.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from glitchrun.errors import DeletedInMlflow, TrackingUnavailable
from glitchrun.ledger.record import RunRecord
from glitchrun.tracking.address import shown
from glitchrun.tracking.description import paragraphs
from glitchrun.tracking.metric_series import SERIES, column_order, columns, headline, points
from glitchrun.tracking.params_and_tags import (
    DESCRIPTION,
    GATES,
    KIND,
    MAX_EXPERIMENT_TAG,
    shortened,
    valid_name,
)
from glitchrun.tracking.store import Store, open_store, unavailable

VIEW_KEY = "glitchrun"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
GROUPED_KEY = "glitchrun-means"
"""The view of a study with repeats: the runs grouped by setting, with means over the seeds."""
GROUPED_TAG = f"mlflow.sharedViewState.{GROUPED_KEY}"

_DESCRIPTION_DIGEST = "glitchrun.note"
"""Tag with the digest of the description that glitchrun wrote; a person's own text stays."""
_STATE_PREFIX = "deflate;"
_MAX_COLUMNS = 10
"""Metric columns that fit on a screen."""
_MAX_COMPARED = 10
"""Runs that fit on MLflow's compare page."""
_WORKFLOW = "workflowType=machine_learning"
"""Without it the UI of MLflow 3.17 opens an experiment on an empty page about traces."""


def find_or_create(record: RunRecord, store: Store) -> str:
    """The id of the run's experiment. Must be called inside `Store.exclusively`.

    Raises:
        DeletedInMlflow: the experiment was deleted in MLflow after a delivery of this run.
        TrackingUnavailable: the experiment was deleted in MLflow, where its name stays taken.
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
    """Writes the experiment's description and saved view, if they changed."""
    tags: Mapping[str, str] = store.client.get_experiment(experiment_id).tags
    for name, text in {**_description_tags(record, tags), **_view_tag(record, tags)}.items():
        store.client.set_experiment_tag(experiment_id, name, text)


def _description_tags(record: RunRecord, tags: Mapping[str, str]) -> dict[str, str]:
    text = shortened(paragraphs(record.identity.description), MAX_EXPERIMENT_TAG)
    before = tags.get(DESCRIPTION, "")
    if (
        not text
        or text == before
        or (before and _identity(before) != tags.get(_DESCRIPTION_DIGEST))
    ):
        return {}
    return {DESCRIPTION: text, _DESCRIPTION_DIGEST: _identity(text)}


def _view_tag(record: RunRecord, tags: Mapping[str, Any]) -> dict[str, str]:
    names = {point.key for point in points(record)}
    metrics = [name for name in names if name.rpartition("/")[2] in columns()]
    swept = [valid_name(name) for name in record.identity.assignments]
    gated = [GATES] if record.spec.get("gates") else []
    view = table_view(metrics, swept, record.started_at, tags.get(VIEW_TAG), gated)
    found = {VIEW_TAG: view} if view else {}
    grouped = _grouped(_view_state(view or tags.get(VIEW_TAG)), swept)
    if grouped and grouped != _view_state(tags.get(GROUPED_TAG)):
        found[GROUPED_TAG] = _packed(grouped, GROUPED_KEY, record.started_at)
    return found


def _grouped(state: Mapping[str, Any], swept: Sequence[str]) -> dict[str, Any]:
    """The state of a view with the runs grouped by every axis but the seed; empty without seeds."""
    settings = [name for name in swept if name != "seed"]
    if "seed" not in swept or not settings:
        return {}
    keys = [{"mode": "param", "groupByData": name} for name in settings]
    return {
        **state,
        "searchFilter": f"tags.`{KIND}` = 'run'",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": keys},
        "useGroupedValuesInCharts": True,
    }


def _packed(state: Mapping[str, Any], name: str, at: int) -> str:
    """The tag of a view."""
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    data = {"name": name, "createdAt": at, "updatedAt": at, "state": _STATE_PREFIX + packed}
    return json.dumps(data)


def table_view(
    metrics: Iterable[str],
    params: Sequence[str],
    at: int,
    before: str | None = None,
    tags: Sequence[str] = (),
) -> str | None:
    """The tag for a table with columns of params, tags and metrics; None if it needs no change.

    Args:
        metrics: Metrics of the experiment's runs.
        params: Params that the runs differ in.
        at: Time of the view, in milliseconds since the epoch.
        before: The present tag. Its columns stay, so that a run with few metrics removes none.
        tags: Tags that the table shows.
    """
    old = _view_state(before)
    selected = old.get("selectedColumns", [])
    known = [name for name in map(_metric_name, selected) if name]
    names = sorted({*known, *metrics}, key=column_order)[:_MAX_COLUMNS]
    others = {
        kind: [column for column in selected if column.startswith(f"{kind}.")]
        + [_column(kind, name) for name in own]
        for kind, own in (("params", params), ("tags", tags))
    }
    wanted = list(dict.fromkeys([*others["params"], *others["tags"]]))
    wanted += [_column("metrics", name) for name in names]
    first = headline(dict.fromkeys(reversed(names)))
    state: dict[str, Any] = {"selectedColumns": wanted, "columnOrder": wanted}
    state |= _charts(names)
    if first:
        state |= {"orderByKey": _column("metrics", first), "orderByAsc": False}
    if state == old:
        return None
    return _packed(state, VIEW_KEY, at)


def _charts(names: Sequence[str]) -> dict[str, Any]:
    """The charts of a view: the final values as bars, then the series as lines.

    By itself MLflow draws a metric that has a series only as lines. It adds the charts of all other
    metrics.
    """
    results = {"uuid": _identity("results"), "name": "results", "display": True}
    sections, charts = [results], [_chart("BAR", name, results) for name in names]
    for name in names:
        step, _, bare = name.rpartition("/")
        if bare in SERIES:
            section = {"uuid": _identity(f"section {step}"), "name": step, "display": True}
            sections += [section] if section not in sections else []
            charts.append(_chart("LINE", name, section))
    return {
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # else MLflow sorts the sections by name
    }


def _chart(kind: str, name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    own = {"xAxisKey": "step", "useGlobalXaxisKey": True} if kind == "LINE" else {}
    return {
        "type": kind,
        "uuid": _identity(f"{kind} {name}"),
        "metricSectionId": section["uuid"],
        "metricKey": name,
        "displayName": name if kind == "BAR" else name.rpartition("/")[2],
        "runsCountToCompare": _MAX_COMPARED,
        "deleted": False,
        "isGenerated": kind == "LINE",
        **own,
    }


def _identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _metric_name(column: str) -> str | None:
    return column[len("metrics.`") : -1] if column.startswith("metrics.`") else None


def _view_state(tag: str | None) -> Mapping[str, Any]:
    """The state in a tag; empty if this module did not write the tag."""
    try:
        packed = json.loads(tag or "{}")["state"]
        compressed = base64.b64decode(packed.removeprefix(_STATE_PREFIX))
        state: Any = json.loads(zlib.decompress(compressed))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return {}
    return state if isinstance(state, dict) else {}


@dataclass(frozen=True, slots=True)
class Link:
    """A page of the MLflow UI."""

    title: str
    address: str


def links(base: str, uri: str, root: Path, experiment: str | None = None) -> list[Link]:
    """Links to glitchrun's experiments in a store, the most recently used first.

    Args:
        base: Address of the UI.
        uri: The store.
        root: Tracking root.
        experiment: Name of one experiment; None for all.

    Raises:
        TrackingUnavailable: the store cannot be read.
        MissingExtra: mlflow is not installed.
    """
    store = open_store(uri, root)
    with unavailable(uri):
        ours = [
            one
            for one in store.client.search_experiments(order_by=["last_update_time DESC"])
            if VIEW_TAG in one.tags and experiment in (None, one.name)
        ]
        return [link for one in ours for link in _links_of(base, one, store)]


def _links_of(base: str, experiment: Any, store: Store) -> Iterator[Link]:
    name, number = experiment.name, experiment.experiment_id
    yield Link(f"{name}: table of runs", experiment_link(base, number))
    if GROUPED_TAG in experiment.tags:
        address = experiment_link(base, number, key=GROUPED_KEY)
        yield Link(f"{name}: means over the seeds of each setting", address)
    runs = store.client.search_runs(
        [number],
        f"tags.`{KIND}` = 'run'",
        max_results=_MAX_COMPARED,
        order_by=["start_time DESC"],
    )
    if len(runs) > 1:
        yield Link(f"{name}: charts", experiment_link(base, number, "CHART"))
        ids = [run.info.run_id for run in reversed(runs)]
        yield Link(f"{name}: newest {len(ids)} runs compared", compare_link(base, number, ids))
    elif runs:
        yield Link(f"{name}: its run", _run_link(base, number, runs[0].info.run_id))


def experiment_link(
    base: str, experiment_id: str, mode: str | None = None, key: str = VIEW_KEY
) -> str:
    """The address of an experiment's table of runs in a saved view.

    Args:
        base: Address of the UI.
        experiment_id: MLflow's id.
        mode: `CHART` or `ARTIFACT` for charts or artifact tables instead.
        key: The view.
    """
    more = f"&compareRunsMode={mode}" if mode else ""
    query = f"{_WORKFLOW}&viewStateShareKey={key}{more}"
    return f"{_ui(base)}/experiments/{experiment_id}/runs?{query}"


def _run_link(base: str, experiment_id: str, run_id: str) -> str:
    return f"{_ui(base)}/experiments/{experiment_id}/runs/{run_id}?{_WORKFLOW}"


def compare_link(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The address of the page that compares runs of one experiment."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    return f"{_ui(base)}/compare-runs?runs={runs}&experiments={experiments}&{_WORKFLOW}"


def _ui(base: str) -> str:
    return f"{shown(base).replace('***@', '').rstrip('/')}/#"
