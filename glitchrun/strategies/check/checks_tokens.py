"""The check of the classification of tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from glitchrun.strategies.check import Config
from glitchrun.strategies.check.outcomes import Checked, Finding, equals
from glitchrun.strategies.context import Context

COMMON = (" the", " and", " of", " is", " in")
"""Words that people write."""
_SHOWN = 10
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def classifier(config: Config, context: Context) -> Checked:
    """Tokens of known classes, those of the spec and those that any tokenizer tells by itself."""
    categories = context.vocabulary.categories
    counts = Counter(categories)
    found = [
        equals("rows classified", sum(counts.values()), context.backend.model.vocab_size),
        *(Finding(f"rows {name}", number) for name, number in sorted(counts.items())),
    ]
    for name, allowed, ids in (*_labelled(config, context), *_known(context)):
        wrong = [one for one in ids if categories[one] not in allowed]
        told = f"{len(ids) - len(wrong)} of {len(ids)}"
        told += f"; not {', '.join(map(str, wrong[:_SHOWN]))}" if wrong else ""
        found.append(Finding(name, told, f"all of them {' or '.join(allowed)}", not wrong))
    return Checked("classifier", tuple(found))


Labels = list[tuple[str, tuple[str, ...], Sequence[int]]]
"""What they are, categories that are right, ids."""


def _labelled(config: Config, context: Context) -> Labels:
    given: Mapping[str, Sequence[int]] = config.labelled or {}
    return [
        (f"labelled {name}", (name,), [token.id for token in context.tokens({"ids": ids})])
        for name, ids in given.items()
    ]


def _known(context: Context) -> Labels:
    """Rows whose class follows from the tokenizer's own lists and from text that people write."""
    tokenizer, vocabulary = context.backend.model.tokenizer, context.vocabulary
    added = [one for one in tokenizer.all_special_ids if one < len(vocabulary)]
    beyond = [row for row, piece in enumerate(vocabulary.pieces) if piece is None]
    raw = [row for row, piece in enumerate(vocabulary.pieces) if _BYTE.fullmatch(piece or "")]
    ordinary = [one for text in COMMON if (one := vocabulary.find(text)) is not None]
    labels: Labels = [
        ("the tokenizer's special ids", ("special", "unused"), added),
        ("rows without an entry", ("unused",), beyond),
        # One that no other entry stands for is text of its own: Mistral writes a line break so.
        ("pieces like <0x0A>", ("byte", "normal"), raw),
        ("common words", ("normal",), ordinary),
    ]
    return [label for label in labels if label[2]]
