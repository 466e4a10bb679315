"""Which MLflow store a run belongs to, and how its URI may be shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from glitchrun.errors import TrackingUnavailable

VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?P<path>/.*)?", re.DOTALL)
_TREACHEROUS = re.compile(r"\?|%[0-9A-Fa-f]{2}")
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
    if not _is_sqlite(uri):
        return _not_a_file_store(uri)
    return f"sqlite:///{_database(uri)}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite store; None for any other store."""
    return _database(uri) if _is_sqlite(uri) else None


def shown(uri: str) -> str:
    """`uri` without what may be secret in it: user, password and query."""
    parts = urlsplit(uri)
    place = parts.netloc.rpartition("@")[2]
    netloc = f"{_HIDDEN}@{place}" if "@" in parts.netloc else place
    query = f"?{_HIDDEN}" if parts.query else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}" if parts.scheme else uri


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


def _is_sqlite(uri: str) -> bool:
    return uri.lower().startswith(("sqlite:", "sqlite+"))


def _database(uri: str) -> Path:
    match = _SQLITE.fullmatch(uri)
    path = (match["path"] or "")[1:] if match else ""
    if not path or path == ":memory:":
        raise TrackingUnavailable(
            f"tracking store {uri!r} names no file; write sqlite:///PATH/mlflow.db"
        )
    if treacherous := _TREACHEROUS.search(path):
        # SQLAlchemy takes the rest for a query, or decodes it, and opens another file than meant.
        raise TrackingUnavailable(
            f"tracking store {uri!r}: {treacherous[0]!r} in the path of an SQLite store is read as "
            f"more than a name; use a folder without it, or name another store in {VARIABLE}"
        )
    return Path(path).expanduser().absolute()


def _not_a_file_store(uri: str) -> str:
    scheme = urlsplit(uri).scheme.lower()
    if scheme == "file" or (len(scheme) < 2 and uri != "databricks"):
        raise TrackingUnavailable(
            f"tracking store {uri!r} is a folder, which MLflow no longer keeps runs in; use "
            "sqlite:///PATH/mlflow.db, the address of a server, or nothing for mlruns/mlflow.db. "
            "Old runs move over with: mlflow migrate-filestore"
        )
    return uri
