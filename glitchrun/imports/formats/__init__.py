"""The formats of result files, one module for the files of each tool.

A format is recognized by its structure, never by the file's name. No file fits two formats.
"""

from __future__ import annotations

from glitchrun.imports.formats import (
    glitcher,
    glitcher_log,
    glitchminer,
    lists,
    magikarp,
    own_files,
)
from glitchrun.imports.records import Format

FORMATS: tuple[Format, ...] = (
    *glitcher.FORMATS,
    *glitcher_log.FORMATS,
    *glitchminer.FORMATS,
    *magikarp.FORMATS,
    *lists.FORMATS,
    *own_files.FORMATS,
)
"""Every format that can be imported."""
