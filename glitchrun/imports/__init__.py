"""Result files of this and other tools, read into one shape.

found.py      what a file says of a token
document.py   a file's text, parsed, with its digest
fields.py     one object's fields, by whatever name a tool gave them
formats/      one file for each family of formats
reading.py    from a path to its tokens: the format chosen, duplicates dropped and counted

Needs the standard library only. Whether ids and texts fit a tokenizer is `vocabulary/claims.py`'s
question.
"""

from glitchrun.imports.found import Found, Imported, Source
from glitchrun.imports.reading import read

__all__ = ["Found", "Imported", "Source", "read"]
