"""The searches of `mine`: what each is for, which parameters it reads, and where its code is.

One entry here and one file in `search/` make a search. The schema's enum, the parameters that a
spec may give beside it, `glitchrun list searches`, the plan's bounds and the strategy read this
table; it stands in the spec's room, and names the code by its place, because that room may import
nothing above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_ROUNDS = ("iterations", "batch_size")
_SAMPLE = ("sample_rate", "sample_size")


@dataclass(frozen=True, slots=True)
class SearchEntry:
    """One search, as everything but the search itself sees it."""

    description: str
    build: str
    """`module:name` of what builds it from a Space and the Config of `mine`."""
    reads: tuple[str, ...] = _ROUNDS
    """Parameters of `mine` that some searches read and others do not: given beside one that does
    not, a spec is refused. Parameters in no entry's `reads` are for every search."""
    needs: tuple[str, ...] = ()
    """Those of `reads` that it cannot do without."""
    screened: bool = False
    """Whether the frozen-suffix screen runs first, for `Space.scores`."""
    gradients: bool = False
    """Whether each round takes one gradient of the model."""
    ends_itself: bool = False
    """Whether it ends by a rule of its own, in batches of its own size, not after `iterations`."""
    names_tokens: bool = False
    """Whether the spec names the tokens that it goes through: what is left of them is reported."""


_ALL = {
    "gradient": SearchEntry(
        "GlitchMiner's walk through the output embedding towards high entropy, by its gradient.",
        "glitchrun.search.gradient:GradientWalk.build",
        reads=(*_ROUNDS, "k", "start"),
        gradients=True,
    ),
    "surrogate": SearchEntry(
        "Learns from its own verdicts which tokens fail (ridge regression on the embeddings).",
        "glitchrun.search.surrogate:Surrogate.build",
    ),
    "screen": SearchEntry(
        "Scores every token in scope cheaply, then verifies the worst scores first.",
        "glitchrun.search.cascade:screened",
        screened=True,
    ),
    "cascade": SearchEntry(
        "Screens, verifies the worst first, ends when a random audit shows the recall asked for.",
        "glitchrun.search.cascade:Cascade.build",
        reads=("recall", "confidence"),
        screened=True,
        ends_itself=True,
    ),
    "low-norm": SearchEntry(
        "Verifies tokens by ascending norm of the input embedding.",
        "glitchrun.search.ordered:by_norm",
    ),
    "random": SearchEntry(
        "Verifies tokens in a random order, fixed by the seed: the baseline.",
        "glitchrun.search.ordered:at_random",
    ),
    "stratified": SearchEntry(
        "A random order in which every stratum (norm, script, length) has its share at any point.",
        "glitchrun.search.stratified:stratified",
    ),
    "range": SearchEntry(
        "Verifies the token ids of the `ranges` given.",
        "glitchrun.search.ordered:by_range",
        reads=(*_ROUNDS, "ranges", *_SAMPLE),
        needs=("ranges",),
        names_tokens=True,
    ),
    "category": SearchEntry(
        "Verifies tokens of the `groups` given: writing systems and kinds of character.",
        "glitchrun.search.ordered:by_category",
        reads=(*_ROUNDS, "groups", *_SAMPLE),
        needs=("groups",),
        names_tokens=True,
    ),
    "pattern": SearchEntry(
        "Verifies tokens whose text one of the `patterns` given matches.",
        "glitchrun.search.ordered:by_pattern",
        reads=(*_ROUNDS, "patterns", *_SAMPLE),
        needs=("patterns",),
        names_tokens=True,
    ),
}

SEARCHES: Mapping[str, SearchEntry] = MappingProxyType(_ALL)
"""Every search by its name in the spec."""


def readers(parameter: str) -> list[str]:
    """The searches that read a parameter of `mine`; empty for one that all of them take."""
    return [name for name, search in SEARCHES.items() if parameter in search.reads]
