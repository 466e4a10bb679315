"""Names that a person may give to tags (`mlflow.utils.validation` of 3.17)."""

from __future__ import annotations

import posixpath
import re
import unicodedata

MAX_TAG_VALUE = 8_000
_MAX_NAME = 250
_FORBIDDEN = re.compile(r"[^\w\-./: ]")
_RESERVED = ("glitchrun.", "mlflow.")


def is_reserved(name: str) -> bool:
    """Whether a tag of this name would stand for what glitchrun or MLflow says of a run. Case and
    width do not count: some databases take no notice of them."""
    plain = unicodedata.normalize("NFKC", name).casefold().strip()
    return plain.startswith(_RESERVED)


def tag_objection(name: str) -> str | None:
    """Why a tag cannot be called this, and what to do; None where it can."""
    if is_reserved(name):
        kept = ", ".join(f"{prefix}*" for prefix in _RESERVED)
        return f"is reserved ({kept} say what a run is); give it a prefix of your own"
    if len(name) > _MAX_NAME:
        return f"has {len(name)} characters in its name, and MLflow takes {_MAX_NAME}; shorten it"
    if bad := _FORBIDDEN.search(name):
        return (
            f"has {bad[0]!r} in its name; MLflow takes letters, digits, spaces and _ - . / : alone"
        )
    if name != name.strip() or posixpath.normpath(name) != name or name.startswith(("/", "..")):
        return "is read as a path or as empty by MLflow; use plain words, such as team or team/name"
    return None
