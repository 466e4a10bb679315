"""Which MLflow store a run belongs to, and how its URI may be shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from glitchrun.errors import TrackingUnavailable
from glitchrun.spec.mlflow_rules import address_objection, database, is_sqlite, objection

VARIABLE = "MLFLOW_TRACKING_URI"
_HIDDEN = "***"


def tracking_uri(spec_uri: str | None, root: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The store that a spec's runs are delivered to.

    Args:
        spec_uri: `tracking.uri` of the spec, if it has one; it wins.
        root: Tracking root; holds the default store, `mlflow.db`.
        environ: Where `MLFLOW_TRACKING_URI` is looked up when the spec names no store.

    Returns:
        A URI that means the same in every working directory.

    Raises:
        TrackingUnavailable: the URI names a store that cannot work; the message has the remedy.
    """
    uri = spec_uri or environ.get(VARIABLE) or f"sqlite:///{root.resolve() / 'mlflow.db'}"
    if found := address_objection(uri):
        raise TrackingUnavailable(f"the tracking store {_named(uri)!r} {found}")
    return f"sqlite:///{database(uri)}" if is_sqlite(uri) else uri


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite store; None for any other store."""
    return database(uri) if is_sqlite(uri) else None


def check_store(uri: str) -> None:
    """Looks whether a store may be written: it is a server, new, or a database of MLflow's.

    Raises:
        TrackingUnavailable: it is something else, which stays as it is.
    """
    if found := objection(uri):
        raise TrackingUnavailable(f"the tracking store {found}")


def shown(uri: str) -> str:
    """`uri` without what may be secret in it: user, password and query."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # not an address, so any part of it may be a secret
        return _HIDDEN
    place = parts.netloc.rpartition("@")[2]
    netloc = f"{_HIDDEN}@{place}" if "@" in parts.netloc else place
    query = f"?{_HIDDEN}" if parts.query else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}" if parts.scheme else uri


def _named(uri: str) -> str:
    """`uri` as far as it can be shown: without a port that may be half of a password."""
    try:
        _ = urlsplit(uri).port
    except ValueError:
        return _HIDDEN
    return shown(uri)


def without_secrets(text: str, uri: str) -> str:
    """`text`, an error message for example, with the secrets of `uri` taken out."""
    parts = urlsplit(uri)
    text = text.replace(uri, shown(uri))
    secrets = [parts.password, parts.netloc.rpartition("@")[0], parts.query]
    for secret in filter(None, secrets):
        text = text.replace(secret, _HIDDEN)
    return text


def delivery_uri(recorded: str, root: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The store for a run whose record says `recorded`, when it is delivered later.

    The default store is found again after its project was moved, and the credentials that a record
    does not hold are taken from `MLFLOW_TRACKING_URI` where that names the same store.

    Raises:
        TrackingUnavailable: the credentials are not at hand.
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
            f"set {VARIABLE} to the whole address and try again"
        )
    return given
