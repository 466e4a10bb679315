"""Vocabularies: categories of tokens, groups of writing systems, features, text for people.

vocabulary.py          Vocabulary: text and category of each row; the tokens in scope
tokenizer_analysis.py  contexts that produce a token; its frequency rank in training
character_groups.py    writing systems and kinds of characters, for `search: category`
text.py                token text made visible, and compared with a model's answer
indicators.py          indicators and norms of the rows of an embedding (needs torch)
controls.py            ordinary tokens that are matched to given ones
vocabulary_fit.py      whether the ids and texts of a file belong to a tokenizer
"""

from glitchrun.vocabulary.vocabulary import CATEGORIES, Vocabulary

__all__ = ["CATEGORIES", "Vocabulary"]
