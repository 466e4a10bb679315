"""Whether a store on the network answers, asked before MLflow's own long retries begin."""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit, urlunsplit

from glitchrun.errors import TrackingUnavailable
from glitchrun.tracking.address import shown

PATIENCE = 5.0
"""Seconds that a server has to answer."""

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_reachable(uri: str) -> None:
    """Asks the host of a store whether it is there.

    Any answer will do, a refusal too: what the store thinks of us is found out by using it. Stores
    without a host in their URI (databricks, plugins) are not asked.

    Raises:
        TrackingUnavailable: nothing answered in `PATIENCE` seconds.
    """
    scheme = urlsplit(uri).scheme.lower()
    try:
        if scheme in ("http", "https"):
            _ask_server(uri)
        elif scheme.partition("+")[0] in _DATABASE_PORTS:
            _ask_database(uri)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise TrackingUnavailable(
            f"MLflow store {shown(uri)} does not answer ({_reason(exc)}); start it, correct "
            "tracking.uri or MLFLOW_TRACKING_URI, or unset both for a local store"
        ) from exc


def _ask_server(uri: str) -> None:
    parts = urlsplit(uri)
    place = parts.netloc.rpartition("@")[2]
    path = f"{parts.path.rstrip('/')}/health"
    url = urlunsplit((parts.scheme, place, path, "", ""))
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            answer.read(1)
    except urllib.error.HTTPError as exc:
        if exc.code >= 500:
            raise OSError(f"HTTP {exc.code}") from exc


def _ask_database(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.hostname:
        port = parts.port or _DATABASE_PORTS[parts.scheme.partition("+")[0].lower()]
        socket.create_connection((parts.hostname, port), PATIENCE).close()


def _reason(exc: Exception) -> str:
    reason = getattr(exc, "reason", None) or exc
    return str(reason) or type(exc).__name__
