"""What MLflow allows in names and values (`mlflow.utils.validation` of 3.17)."""

from __future__ import annotations

import posixpath
import re

KEY = 250
PARAM = 6_000
TAG = 8_000
EXPERIMENT_TAG = 5_000

_FORBIDDEN = re.compile(r"[^\w\-./: ]")


def key(text: str) -> str:
    """`text` as the name of a param, metric or tag: what MLflow forbids becomes `_`."""
    clean = _FORBIDDEN.sub("_", text)
    normal = posixpath.normpath(clean).lstrip("/") if clean else "_"
    return ("_" + normal if normal.startswith(".") else normal)[:KEY]


def value(text: str, limit: int) -> str:
    """`text` within `limit` characters; where it is cut it says how much is missing."""
    if len(text) <= limit:
        return text
    end = f"… ({len(text):,} characters in all)"
    return text[: limit - len(end)] + end


def storable(text: str) -> str:
    """`text` as every store takes it: lone surrogates, which UTF-8 cannot hold, and NUL, which
    PostgreSQL does not, are written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
