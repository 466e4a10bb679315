"""What a vocabulary holds: categories, groups of writing systems, norms, text for people.

categories.py  Vocabulary: what kind of entry each row of the embedding is, and why
groups.py      writing systems and kinds of character, for `search: category`
norms.py       L2 norms of the input embedding (the only file here that imports torch)
text.py        token text made visible, and compared with what a model said instead
"""
