"""Readers for the result files of this and other tools.

Whether the ids and texts fit a tokenizer is checked in `vocabulary/vocabulary_fit.py`.
"""

from glitchrun.imports.reading import read
from glitchrun.imports.records import ImportedFile, ImportedToken, ResultSource

__all__ = ["ImportedFile", "ImportedToken", "ResultSource", "read"]
