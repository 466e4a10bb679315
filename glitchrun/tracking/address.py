"""Which MLflow store a run belongs to, whether it answers, and how its URI may be shown."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from glitchrun.errors import TrackingUnavailable
from glitchrun.spec.mlflow_rules import address_objection, database, is_sqlite, objection

VARIABLE = "MLFLOW_TRACKING_URI"
Answer = TypeVar("Answer")

RESPONSE_SECONDS = 5.0
"""Seconds that a server has to answer."""

_HIDDEN = "***"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def tracking_uri(spec_uri: str | None, root: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The MLflow store of a spec, as a URI that does not depend on the working directory.

    Args:
        spec_uri: `tracking.uri` of the spec; it has priority.
        root: Tracking root; the default store is `mlflow.db` in it.
        environ: Environment with `MLFLOW_TRACKING_URI`, which is used if the spec names no store.

    Raises:
        TrackingUnavailable: the URI names a store that cannot work; the message has the remedy.
    """
    uri = spec_uri or environ.get(VARIABLE) or f"sqlite:///{root.resolve() / 'mlflow.db'}"
    if found := address_objection(uri):
        raise TrackingUnavailable(f"the tracking store {_named(uri)!r} {found}")
    return f"sqlite:///{database(uri)}" if is_sqlite(uri) else uri


def delivery_uri(recorded: str, root: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The MLflow store of a recorded run, for a delivery after the run.

    If the project was moved, this is the default store at its new location. Records contain no
    credentials; they are taken from `MLFLOW_TRACKING_URI` if that names the same store.

    Args:
        recorded: `tracking_uri` of the run's identity.
        root: Tracking root.
        environ: Environment with `MLFLOW_TRACKING_URI`.

    Raises:
        TrackingUnavailable: the store needs credentials that the environment does not have.
    """
    path = sqlite_path(recorded)
    beside = root.resolve() / "mlflow.db"
    if path is not None and path.name == beside.name and not path.exists() and beside.exists():
        return f"sqlite:///{beside}"
    if f"{_HIDDEN}@" not in recorded and not recorded.endswith(f"?{_HIDDEN}"):
        return recorded
    given = environ.get(VARIABLE, "")
    if shown(given) != recorded:
        raise TrackingUnavailable(
            f"the run belongs to {recorded}, whose credentials are not kept with it; "
            f"set {VARIABLE} to the complete address and try again"
        )
    return given


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite store; None for any other store."""
    return database(uri) if is_sqlite(uri) else None


def check_store(uri: str) -> None:
    """Checks that a store may be written: a server, a new database or one of MLflow's.

    Raises:
        TrackingUnavailable: the URI names another file, which stays unchanged.
    """
    if found := objection(uri):
        raise TrackingUnavailable(f"the tracking store {found}")


def check_reachable(uri: str) -> None:
    """Checks that the host of a store answers, because MLflow would retry for minutes.

    Any answer passes, an error too: using the store shows what it means. Stores without a host in
    their URI (databricks, plugins) are not checked.

    Raises:
        TrackingUnavailable: nothing answered within `RESPONSE_SECONDS`.
    """
    scheme = urlsplit(uri).scheme.lower()
    try:
        if scheme in ("http", "https"):
            in_time(lambda: _request_health(uri), RESPONSE_SECONDS)
        elif scheme.partition("+")[0] in _DATABASE_PORTS:
            in_time(lambda: _connect_to_database(uri), RESPONSE_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        reason = getattr(exc, "reason", None) or exc
        raise TrackingUnavailable(
            f"MLflow store {shown(uri)} does not answer ({str(reason) or type(exc).__name__}); "
            f"start it, correct tracking.uri or {VARIABLE}, or unset both for a local store"
        ) from exc


def in_time(request: Callable[[], Answer], seconds: float) -> Answer:
    """Makes a request and bounds its whole time: a socket's timeout only bounds each read.

    Raises:
        TimeoutError: no answer within `seconds`. The request continues in a thread that
            does not keep the process from ending.
        Exception: what `request` raised.
    """
    answered: Future[Answer] = Future()

    def work() -> None:
        try:
            answered.set_result(request())
        except Exception as exc:  # noqa: BLE001 - raised again by `result`
            answered.set_exception(exc)

    threading.Thread(target=work, name="request", daemon=True).start()
    if not wait([answered], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answered.result()


def _request_health(uri: str) -> None:
    try:
        with urllib.request.urlopen(  # nosec B310 # an http address
            f"{without_user(uri)}/health", timeout=RESPONSE_SECONDS
        ) as answer:
            answer.read(1)
    except urllib.error.HTTPError as exc:
        if exc.code >= 500:
            raise OSError(f"HTTP {exc.code}") from exc


def _connect_to_database(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.hostname:
        port = parts.port or _DATABASE_PORTS[parts.scheme.partition("+")[0].lower()]
        socket.create_connection((parts.hostname, port), RESPONSE_SECONDS).close()


def without_user(uri: str) -> str:
    """The address of a server without user, password, query and a slash at the end."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def shown(uri: str) -> str:
    """`uri` with user, password and query replaced by `***`."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # not an address, so any part of it may be a secret
        return _HIDDEN
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{_HIDDEN}@{host}" if "@" in parts.netloc else host
    query = f"?{_HIDDEN}" if parts.query else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}" if parts.scheme else uri


def _named(uri: str) -> str:
    """`uri` for a message; hidden if its port is invalid, which may be half of a password."""
    try:
        _ = urlsplit(uri).port
    except ValueError:
        return _HIDDEN
    return shown(uri)


def without_secrets(text: str, uri: str) -> str:
    """`text`, such as an error message, with the secrets of `uri` replaced by `***`."""
    parts = urlsplit(uri)
    text = text.replace(uri, shown(uri))
    secrets = [parts.password, parts.netloc.rpartition("@")[0], parts.query]
    for secret in filter(None, secrets):
        text = text.replace(secret, _HIDDEN)
    return text
