"""Addresses in the MLflow UI that open on something worth looking at.

Without `workflowType` the UI of MLflow 3.17 opens an experiment on an empty page about traces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from glitchrun.tracking.address import shown
from glitchrun.tracking.store import Store, open_store, unavailable
from glitchrun.tracking.tags import KIND
from glitchrun.tracking.view import KEY, TAG

_ML = "workflowType=machine_learning"
_COMPARED = 10
"""Runs on a compare page; more would not fit a screen."""


def experiment_link(base: str, experiment_id: str, mode: str | None = None) -> str:
    """The table of runs on the headline columns.

    Args:
        base: Address of the UI.
        experiment_id: MLflow's id.
        mode: `CHART` or `ARTIFACT` for charts or tables instead.
    """
    more = f"&compareRunsMode={mode}" if mode else ""
    return f"{_at(base)}/experiments/{experiment_id}/runs?{_ML}&viewStateShareKey={KEY}{more}"


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{_at(base)}/experiments/{experiment_id}/runs/{run_id}?{_ML}"


def compare_link(base: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that holds runs against each other."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps([experiment_id]))
    return f"{_at(base)}/compare-runs?runs={runs}&experiments={experiments}&{_ML}"


def _at(base: str) -> str:
    return f"{shown(base).replace('***@', '').rstrip('/')}/#"


@dataclass(frozen=True, slots=True)
class Link:
    what: str
    address: str


def links(base: str, uri: str, root: Path, experiment: str | None = None) -> list[Link]:
    """Links to what glitchrun delivered to a store, the experiment used last first.

    Args:
        base: Address of the UI.
        uri: The store.
        root: Tracking root.
        experiment: Name of the one experiment wanted; None for all.

    Raises:
        TrackingUnavailable: the store cannot be read.
    """
    store = open_store(uri, root)
    with unavailable(uri):
        ours = [
            one
            for one in store.client.search_experiments(order_by=["last_update_time DESC"])
            if TAG in one.tags and experiment in (None, one.name)
        ]
        return [link for one in ours for link in _of(base, one, store)]


def _of(base: str, experiment: Any, store: Store) -> Iterator[Link]:
    name, number = experiment.name, experiment.experiment_id
    yield Link(f"{name}: table of runs", experiment_link(base, number))
    runs = store.client.search_runs(
        [number], f"tags.`{KIND}` = 'run'", max_results=_COMPARED, order_by=["start_time DESC"]
    )
    if len(runs) > 1:
        yield Link(f"{name}: charts", experiment_link(base, number, "CHART"))
        ids = [run.info.run_id for run in reversed(runs)]
        yield Link(f"{name}: newest {len(ids)} runs compared", compare_link(base, number, ids))
    elif runs:
        yield Link(f"{name}: its run", run_link(base, number, runs[0].info.run_id))
