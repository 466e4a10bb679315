"""One module for each family of formats, found by being here: each has `FORMATS`.

A format is recognized by its shape, never by the file's name, and no file fits two.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from glitchrun.imports.formats.format import Content, Format

__all__ = ["FORMATS", "Content", "Format"]

_FAMILIES = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
FORMATS: tuple[Format, ...] = tuple(
    form for family in _FAMILIES for form in getattr(family, "FORMATS", ())
)
"""Every format that can be read, in the order of their modules' names."""
