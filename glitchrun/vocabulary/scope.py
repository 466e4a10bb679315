"""The part of a vocabulary that an experiment may look at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from glitchrun.spec.types import TokenScope
from glitchrun.vocabulary.vocabulary import Vocabulary


def in_scope(vocabulary: Vocabulary, scope: TokenScope) -> list[int]:
    """Ids of the tokens of the scope's categories that it does not exclude, ascending."""
    excluded = excluded_from(vocabulary, scope, scope.categories)
    return [row for row in vocabulary.ids(scope.categories) if row not in excluded]


def excluded_from(
    vocabulary: Vocabulary, scope: TokenScope, categories: Sequence[str]
) -> frozenset[int]:
    """Tokens of the categories that `tokens.exclude` removes from the scope."""
    patterns = [re.compile(pattern) for pattern in scope.exclude or ()]
    if not patterns:
        return frozenset()
    texts = vocabulary.texts
    return frozenset(
        row
        for row in vocabulary.ids(categories)
        if any(pattern.search(texts[row]) for pattern in patterns)
    )


def contents(vocabulary: Vocabulary) -> str:
    """How many rows each category has: `381 normal, 256 byte, 3 special`."""
    counts = Counter(vocabulary.categories)
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
