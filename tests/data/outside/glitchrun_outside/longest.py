"""A search of long texts first."""

from glitchrun.search import Ordered, Parameters, Space


def longest(space: Space, config: Parameters) -> Ordered:
    """Descending length of the decoded text."""
    text = space.vocabulary.text
    kept = [i for i in space.ids.tolist() if len(text(i)) >= config.own["min_length"]]
    return Ordered(sorted(kept, key=lambda i: -len(text(i))))
