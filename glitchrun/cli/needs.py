"""What a command needs beyond the light installation."""

from __future__ import annotations

from importlib.util import find_spec

from glitchrun.errors import MissingExtra


def require(*packages: str, extra: str = "run") -> None:
    """Raises MissingExtra for the first package that is not installed, without importing any."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtra(package, extra)
