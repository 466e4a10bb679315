"""Which tokens a stand-in is never shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from glitchrun.vocabulary import Vocabulary

SEEDS_IDS = (1000, 2000, 3000)
"""The tokens that the specs nowllm-test*.yaml ask about: ordinary ones here."""


_SHARE = 0.001
"""Of the vocabulary's entries, the share that may hold a planted token's text besides itself."""


def plantable(vocabulary: Vocabulary, shown: Iterable[int], answers: Sequence[str]) -> list[int]:
    """Normal tokens that no lesson needs, and whose text a wrong answer hardly holds by chance.

    An attempt of `validate` counts as passed where the answer holds the token's text anywhere, also
    inside a longer word: texts of one or two letters, texts that many entries hold, and those that
    the answers taught hold, would prove nothing.
    """
    taken = {*shown, *SEEDS_IDS}
    everything, taught = "\n".join(vocabulary.texts), "\n".join(answers)
    most = 1 + int(_SHARE * len(vocabulary))

    def tells(text: str) -> bool:
        long = len(text) >= 3 or (bool(text) and not text.isascii())
        return long and text not in taught and everything.count(text) <= most

    return [
        token_id
        for token_id in vocabulary.ids(["normal"])
        if token_id not in taken and tells(vocabulary.text(token_id).strip())
    ]


def plant(
    candidates: Sequence[int], count: int, seed: int, always: Sequence[int] = ()
) -> list[int]:
    """`always` and as many of the candidates as make it `count`, ascending."""
    free = [one for one in candidates if one not in set(always)]
    chosen = np.random.default_rng(seed).choice(free, size=count - len(always), replace=False)
    return sorted([*always, *(int(token_id) for token_id in chosen)])
