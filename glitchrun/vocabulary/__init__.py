"""What a vocabulary holds: categories, groups of writing systems, norms, text for people.

vocabulary.py   Vocabulary: what each row of the embedding is, and why
byte_pieces.py  entries that are raw bytes
controls.py     ordinary tokens that are like given ones
frequency.py    how frequent an entry was when the tokenizer was trained
groups.py       writing systems and kinds of character, for `search: category`
indicators.py   what an embedding says of its own rows (needs torch)
norms.py        L2 norms of the input embedding (needs torch)
shape.py        the form of texts as numbers to learn from
text.py         token text made visible, and compared with what a model said instead
claims.py       whether the ids and texts of a file fit a tokenizer
"""

from glitchrun.vocabulary.vocabulary import CATEGORIES, Vocabulary

__all__ = ["CATEGORIES", "Vocabulary"]
