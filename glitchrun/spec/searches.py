"""The searches of `mine`: what each is for, which parameters it reads, and where its code is.

A search is an entry of this table and the code that the entry names in `glitchrun/search/`. The
schema's enum, `glitchrun list searches`, the plan and the strategy `mine` read the table. Other
packages add entries through the entry point group `glitchrun.searches`.

The table is part of `spec` so that `validate` and `plan` need no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glitchrun.spec.indicators import INDICATORS
from glitchrun.spec.registry import Registry

_ROUNDS = ("iterations", "batch_size")
_SAMPLE = ("sample_rate", "sample_size")


@dataclass(frozen=True, slots=True)
class SearchEntry:
    """The declaration of one search, which the schema, the plan and `mine` read."""

    description: str
    """One sentence, for `glitchrun list searches`."""
    build: str
    """`module:name` of the function that builds it from a `Space` and the Config of `mine`."""
    reads: tuple[str, ...] = _ROUNDS
    """Parameters of `mine` that it reads and other searches do not: a spec that gives such a
    parameter to a search that does not read it is refused."""
    needs: tuple[str, ...] = ()
    """Those of `reads` that a spec must give."""
    screened: bool = False
    """Whether the frozen-suffix screen runs first and fills `Space.scores`."""
    gradients: bool = False
    """Whether each round takes one gradient of the model."""
    ends_itself: bool = False
    """Whether it ends by its own rule and with its own batch sizes, not after `iterations`."""
    ordered: bool = False
    """Whether its order is fixed before it starts, so that any number of tokens may be verified
    together."""
    judges: bool = True
    """Whether `thresholds.probability` decides which tokens it verifies."""
    selects: str = ""
    """`module:name` of the function that selects tokens of the scope by the value of `needs[0]`;
    empty where the search may verify the whole scope. The plan refuses a spec that selects no
    token, and the report shows how many selected tokens are not verified."""
    seeded: bool = True
    """Whether the seed of the spec decides which tokens it verifies, apart from `sample_rate` and
    `sample_size`. If not, runs that differ only in their seed share the step."""
    random: bool = False
    """Whether the tokens that it verifies are a random sample of the scope at any point."""
    regression: bool = False
    """Whether it fits a regression on features of every token; the plan counts the memory of its
    tables."""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """JSON Schema of parameters that only this search has, each with its default; `Config.own`
    contains their values."""


_ALL = {
    "gradient": SearchEntry(
        "Follows the gradient of the entropy from token to token, as GlitchMiner does.",
        "glitchrun.search.gradient:GradientWalk.build",
        reads=(*_ROUNDS, "k", "start"),
        gradients=True,
        judges=False,
        seeded=False,
    ),
    "surrogate": SearchEntry(
        "Learns from its own verdicts which tokens fail (ridge regression on the embeddings).",
        "glitchrun.search.surrogate:Surrogate.build",
        regression=True,
    ),
    "screen": SearchEntry(
        "Scores every token in scope cheaply, then verifies the worst scores first.",
        "glitchrun.search.cascade:screened",
        screened=True,
        ordered=True,
    ),
    "cascade": SearchEntry(
        "Screens, verifies the worst first, ends when a random audit shows the requested recall.",
        "glitchrun.search.cascade:Cascade.build",
        reads=("recall", "confidence"),
        screened=True,
        ends_itself=True,
    ),
    "low-norm": SearchEntry(
        "Verifies tokens by ascending norm of the input embedding.",
        "glitchrun.search.ordered:by_norm",
        judges=False,
        seeded=False,
        ordered=True,
    ),
    "indicator": SearchEntry(
        "Verifies tokens by ascending value of an indicator, as Land and Bartolo do.",
        "glitchrun.search.ordered:by_indicator",
        judges=False,
        seeded=False,
        ordered=True,
        parameters={
            "indicator": {
                "description": "The indicator. `auto`: the input norm, or for tied embeddings the "
                "distance to the reference rows (`tokens.unused`).",
                "enum": ["auto", *INDICATORS],
                "default": "auto",
            }
        },
    ),
    "random": SearchEntry(
        "Verifies tokens in a random order, fixed by the seed: the baseline.",
        "glitchrun.search.ordered:at_random",
        random=True,
        judges=False,
        ordered=True,
    ),
    "stratified": SearchEntry(
        "A random order in which every stratum (norm, script, length) has its share at any point.",
        "glitchrun.search.ordered:stratified",
        random=True,
        judges=False,
        ordered=True,
    ),
    "range": SearchEntry(
        "Verifies the token ids in `ranges`.",
        "glitchrun.search.ordered:by_range",
        reads=(*_ROUNDS, "ranges", *_SAMPLE),
        needs=("ranges",),
        selects="glitchrun.search.ordered:in_ranges",
        judges=False,
        seeded=False,
        ordered=True,
    ),
    "category": SearchEntry(
        "Verifies tokens of `groups`: writing systems and kinds of character.",
        "glitchrun.search.ordered:by_category",
        reads=(*_ROUNDS, "groups", *_SAMPLE),
        needs=("groups",),
        selects="glitchrun.search.ordered:in_groups",
        judges=False,
        seeded=False,
        ordered=True,
    ),
    "pattern": SearchEntry(
        "Verifies tokens whose text matches one of the `patterns`.",
        "glitchrun.search.ordered:by_pattern",
        reads=(*_ROUNDS, "patterns", *_SAMPLE),
        needs=("patterns",),
        selects="glitchrun.search.ordered:matching",
        judges=False,
        seeded=False,
        ordered=True,
    ),
}

SEARCHES = Registry("search", "glitchrun.searches", SearchEntry, _ALL)
"""Every search by its name in the spec."""


def readers(parameter: str, names: Mapping[str, Any] = SEARCHES) -> list[str]:
    """The searches, among `names`, that read a parameter of `mine`; empty where all of them do."""
    entries = {name: SEARCHES[name] for name in names}
    return [
        name
        for name, entry in entries.items()
        if parameter in entry.reads or parameter in entry.parameters
    ]
