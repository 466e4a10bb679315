"""The saved view of an experiment: a table of runs that opens on the columns that matter.

MLflow's UI keeps a shared view in a tag of the experiment: `{"name", "createdAt", "updatedAt",
"state"}` with the state as `deflate;` and base64 of zlib of JSON. That is not documented; it was
read from the UI of MLflow 3.17. A UI that does not know it shows its own default table.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glitchrun.tracking.metrics import column_order, headline

KEY = "glitchrun"
TAG = f"mlflow.sharedViewState.{KEY}"

_PREFIX = "deflate;"
_MOST = 10
"""Metric columns; more would not fit a screen."""


def view(
    metrics: Iterable[str], params: Sequence[str], at: int, before: str | None = None
) -> str | None:
    """The tag's value for a table of these metrics and params.

    Args:
        metrics: Names of the metrics that runs of the experiment have.
        params: Names of the params worth a column: those that are swept.
        at: When the view was made, in milliseconds since the epoch.
        before: The tag as it is. Its columns stay, so that a run of few metrics takes nothing away.

    Returns:
        None where the tag already says this.
    """
    old = _state(before)
    columns = old.get("selectedColumns", [])
    known = [name for name in map(_metric_name, columns) if name]
    names = sorted({*known, *metrics}, key=column_order)[:_MOST]
    swept = [_column("params", name) for name in params]
    kept = [column for column in columns if column.startswith("params.")]
    wanted = [*dict.fromkeys([*kept, *swept]), *(_column("metrics", name) for name in names)]
    first = headline(dict.fromkeys(reversed(names)))
    state: dict[str, Any] = {"selectedColumns": wanted, "columnOrder": wanted}
    if first:
        state |= {"orderByKey": _column("metrics", first), "orderByAsc": False}
    if state == old:
        return None
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    data = {"name": KEY, "createdAt": at, "updatedAt": at, "state": _PREFIX + packed}
    return json.dumps(data)


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _metric_name(column: str) -> str | None:
    return column[len("metrics.`") : -1] if column.startswith("metrics.`") else None


def _state(tag: str | None) -> Mapping[str, Any]:
    """The state in a tag; empty where there is none that this code wrote."""
    try:
        packed = json.loads(tag or "{}")["state"]
        state: Any = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix(_PREFIX))))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return {}
    return state if isinstance(state, dict) else {}
