"""A sample that represents the vocabulary at whatever size it is stopped."""

from __future__ import annotations

import numpy as np

from glitchrun.search.base import Parameters, Space
from glitchrun.search.ordered import Ordered
from glitchrun.vocabulary.character_groups import group_of

_LENGTHS = (1, 3, 6)  # upper ends of the length buckets 1, 2-3, 4-6 and, above the last, 7 and more


def stratified(space: Space, config: Parameters) -> Ordered:
    """Strata of norm quintile × group of characters × length, interleaved in proportion to size.

    The member of rank r (from 0, in random order) of a stratum of size s comes at (r + u) / s with
    u uniform, so any prefix of the order holds every stratum in proportion, up to one.
    """
    rng = np.random.default_rng(space.seed)
    ids = space.ids.numpy()
    norms = space.vocabulary.norms[space.ids].numpy()
    quintiles = np.searchsorted(np.quantile(norms, [0.2, 0.4, 0.6, 0.8]), norms)
    strata: dict[tuple[int, str, int], list[int]] = {}
    for token_id, quintile in zip(ids.tolist(), quintiles.tolist(), strict=True):
        text = space.vocabulary.text(token_id)
        length = int(np.searchsorted(_LENGTHS, len(text.strip())))
        strata.setdefault((quintile, group_of(text), length), []).append(token_id)
    keyed: list[tuple[float, int]] = []
    for stratum in sorted(strata):
        members = rng.permutation(strata[stratum]).tolist()
        shift = float(rng.random())
        keyed += [((rank + shift) / len(members), m) for rank, m in enumerate(members)]
    return Ordered(token_id for _, token_id in sorted(keyed))
