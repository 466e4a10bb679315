"""The cache folder of a user, shared by all projects, and safe to delete.

It contains converted models (`model/gguf_conversion.py`), kept int8 and int4 weights
(`model/quantized_cache.py`), the answers that `plan` keeps
(`runner/resolved_cache.py`) and timings of matrix products (`probing/arithmetic.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from glitchrun.errors import PreflightError

CACHE_VARIABLE = "GLITCHRUN_CACHE"
CONVERSIONS = ("gguf", "quantized")
"""Folders of converted models."""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """GLITCHRUN_CACHE, else XDG_CACHE_HOME/glitchrun, else ~/.cache/glitchrun.

    The folder need not exist. Raises PreflightError where none of them can be determined.
    """
    if given := environ.get(CACHE_VARIABLE):
        try:
            return Path(given).expanduser().absolute()
        except RuntimeError as error:  # `~nobody`
            raise PreflightError(
                f"{CACHE_VARIABLE}={given}: no such user; set it to a folder with enough space"
            ) from error
    base = environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification ignores relative paths
        return Path(base) / "glitchrun"
    home = environ.get("HOME")
    try:
        return (Path(home) if home else Path.home()) / ".cache" / "glitchrun"
    except RuntimeError as error:
        raise PreflightError(
            f"there is no home folder for the cache; set {CACHE_VARIABLE} to a folder with "
            "enough space"
        ) from error


def size_of(folder: Path) -> int:
    """Bytes of the files under a folder; 0 where it does not exist."""
    sizes = (path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink())
    return sum(sizes) if folder.is_dir() else 0


def remove_conversions(folder: Path) -> int:
    """Remove the converted models under a cache folder and return the number of bytes freed.

    Removes only files that glitchrun wrote. Raises PreflightError where a file cannot be removed.
    """
    freed = 0
    for converted in (folder / name for name in CONVERSIONS):
        freed += size_of(converted)
        try:
            if converted.is_symlink():
                raise PreflightError(f"{converted}: a link; remove it yourself")
            if converted.exists():
                shutil.rmtree(converted)
        except OSError as error:
            raise PreflightError(
                f"{error.filename or converted}: cannot be removed ({error.strerror}); remove "
                f"{converted} yourself"
            ) from error
    return freed
