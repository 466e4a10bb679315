"""Selects the planted tokens, which never occur in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from glitchrun.vocabulary import Vocabulary

SPEC_TOKENS = (1000, 2000, 3000)
"""The tokens in the specs nowllm-test*.yaml, which are ordinary tokens in a stand-in."""
_SHARE = 0.001
"""Maximum share of the vocabulary's entries that contain a planted token's text."""


def plantable(vocabulary: Vocabulary, shown: Iterable[int], answers: Sequence[str]) -> list[int]:
    """Normal tokens that no lesson needs and whose text a wrong answer hardly contains by chance.

    An attempt of `validate` passes where the answer contains the token's text anywhere, also inside
    a longer word. So texts of one or two letters, texts that occur in many entries, and texts in
    the trained answers are left out.
    """
    taken = {*shown, *SPEC_TOKENS}
    everything, taught = "\n".join(vocabulary.texts), "\n".join(answers)
    most = 1 + int(_SHARE * len(vocabulary))

    def is_distinctive(text: str) -> bool:
        long = len(text) >= 3 or (bool(text) and not text.isascii())
        return long and text not in taught and everything.count(text) <= most

    return [
        token_id
        for token_id in vocabulary.ids(["normal"])
        if token_id not in taken and is_distinctive(vocabulary.text(token_id).strip())
    ]


def plant(
    candidates: Sequence[int], count: int, seed: int, always: Sequence[int] = ()
) -> list[int]:
    """`always`, and random candidates up to `count` tokens in all, ascending."""
    free = [one for one in candidates if one not in set(always)]
    chosen = np.random.default_rng(seed).choice(free, size=count - len(always), replace=False)
    return sorted([*always, *(int(token_id) for token_id in chosen)])
