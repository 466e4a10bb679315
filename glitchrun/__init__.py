"""Declarative experiments on glitch tokens in language models.

`load_run`, `find_runs` and `apply` are the Python interface; docs/python.md shows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glitchrun.api import (
        GlitchrunError,
        Interrupted,
        InvalidSpec,
        PreflightError,
        Run,
        RunError,
        UsageError,
        apply,
        find_runs,
        load_run,
    )

__version__ = "0.1.0"
__all__ = [
    "GlitchrunError",
    "Interrupted",
    "InvalidSpec",
    "PreflightError",
    "Run",
    "RunError",
    "UsageError",
    "__version__",
    "apply",
    "find_runs",
    "load_run",
]


def __getattr__(name: str) -> Any:
    """Imports the Python interface when it is first used: `glitchrun validate` stays light."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from glitchrun import api

    return getattr(api, name)
