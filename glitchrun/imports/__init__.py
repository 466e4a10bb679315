"""Result files of this and other tools, read into one shape.

found.py      what a file says of a token
document.py   a file's text, parsed, with its digest
fields.py     one object's fields, by whatever name a tool gave them
formats/      one file for each family of formats
reading.py    from a path to its tokens: the format chosen, duplicates dropped and counted

Needs the standard library only. `vocabulary/vocabulary_fit.py` checks whether
ids and texts fit a tokenizer.
"""

from glitchrun.imports.found import Found, Imported, Source
from glitchrun.imports.reading import read

__all__ = ["Found", "Imported", "Source", "read"]
