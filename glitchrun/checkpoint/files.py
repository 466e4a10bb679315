"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glitchrun.errors import ModelUnavailable

_MAX_JSON_BYTES = 64 * 1024 * 1024


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of limited size. Raises ModelUnavailable naming the file."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelUnavailable(f"{path}: too large for a file of this name")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelUnavailable(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{path}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ModelUnavailable(f"{path}: holds no JSON object; fetch it again")
    return value
