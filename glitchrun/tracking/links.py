"""Addresses in the MLflow UI that open on something worth looking at.

Without `workflowType` the UI of MLflow 3.17 opens an experiment on an empty page about traces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

from glitchrun.tracking.address import shown
from glitchrun.tracking.view import KEY

_ML = "workflowType=machine_learning"


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
