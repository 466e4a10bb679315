"""`mine`: searches the vocabulary for glitch tokens under a budget of verifications."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glitchrun.plan.work import (
    CONTROLS_EACH,
    generated_positions,
    probe_positions,
    verification,
)
from glitchrun.spec.searches import SEARCHES
from glitchrun.spec.strategy import (
    Expectation,
    Strategy,
    Work,
    Workload,
    frozen,
    read_fragment,
)

ITERATIONS = 50
"""Rounds of a search that neither `iterations` nor `budget` limits."""
_LEARNS = 2
"""Factor by which a search without a screen or a fixed order finds more glitch tokens than random
order. On SmolLM2: 2.0 for GlitchMiner's search and 2.9 for the surrogate."""
_HITS_EACH = 2
"""Tokens in the front of a cascade per glitch token: 1.6 to 2.5 on SmolLM2 (docs/engine.md)."""
_FRONT_END = 150
"""Further tokens at the end of a front, where few are glitch tokens."""
_FIRST_AUDIT = 0.8
"""Share of the error probability that a cascade's first audit gets, as in
`glitchrun.search.cascade`."""


@dataclass(frozen=True, slots=True)
class Config:
    search: str = "gradient"
    """How tokens are chosen: a name from `glitchrun list searches`."""
    iterations: int | None = None
    """Rounds of proposing and verifying; None for `ITERATIONS`, or for what `budget` allows."""
    batch_size: int = 8
    """Tokens verified in each round. A search learns from each batch, so small ones guide it."""
    recall: float = 0.9
    """Share of the glitch tokens in scope that a cascade finds before it ends."""
    confidence: float = 0.95
    """Confidence of the bounds on recall."""
    k: int = 32
    """Nearest unvisited neighbours that a round of the gradient search considers: GlitchMiner's."""
    budget: int | None = None
    """Verifications after which the search ends; None for no such limit."""
    start: int | None = None
    """Token id where the gradient search starts; None for the token of least embedding norm."""
    ranges: tuple[tuple[int, int], ...] | None = None
    """Spans of token ids, both ends included."""
    groups: tuple[str, ...] | None = None
    """Writing systems or kinds of character."""
    patterns: tuple[str, ...] | None = None
    """Regular expressions, matched anywhere in the decoded token."""
    sample_rate: float | None = None
    """Share of each range, group or pattern that is drawn; None for all of it."""
    sample_size: int | None = None
    """Largest number of tokens of each range, group or pattern that are drawn; None for no such
    limit."""
    probes: str | tuple[str, ...] = ("repeat",)
    """Prompts that a glitch token must fail. One by default: each costs a pass of every token."""
    controls: int = 0
    """Ordinary tokens verified after the search, to measure the false-alarm rate."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that only this search has (`SearchEntry.parameters`), defaults included."""

    def __post_init__(self) -> None:
        declared = SEARCHES[self.search].parameters.items()
        defaults = {name: part.get("default") for name, part in declared}
        object.__setattr__(self, "own", defaults | dict(self.own))

    @property
    def limit(self) -> int | None:
        """Verifications that the search may spend; None where only the vocabulary bounds them."""
        if SEARCHES[self.search].ends_itself or (
            self.iterations is None and self.budget is not None
        ):
            return self.budget
        rounds = (self.iterations or ITERATIONS) * self.batch_size
        return rounds if self.budget is None else min(rounds, self.budget)


class Mine(Strategy):
    """Searches the vocabulary for glitch tokens under a budget of verifications."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("schema.json"))
    code = f"{__name__}.run:run"
    example = (
        "  - {id: mine, strategy: mine, search: gradient, iterations: 50, batch_size: 8, k: 32}\n"
        "  - {id: asr, strategy: validate, tokens: {from: mine}, attempts: 5}\n"
        "  # Which of these tokens does the model fail to copy even when shown?\n"
        "  - {id: shown, strategy: test, tokens: {from: mine}, probes: magikarp, sequential: true}"
    )
    figures = ("glitchrun.report.figures.discovery:draw_discovery",)
    metrics_code = "glitchrun.strategies.metrics:of_mining"
    verdict = "probability"
    searches = True

    def configure(self, params: Mapping[str, Any]) -> Config:
        """The Config of a step; parameters that it has no field for go into `own`."""
        known = {key: value for key, value in params.items() if key in Config.__dataclass_fields__}
        own = {key: frozen(value) for key, value in params.items() if key not in known}
        return Config(**{key: frozen(value) for key, value in known.items()}, own=own)

    def takes_scope(self, config: Config) -> bool:
        return True

    def spreads(self, config: Config) -> bool:
        search = SEARCHES[config.search]
        return search.ordered or search.screened

    def steering(self, config: Config) -> frozenset[str]:
        judges = config.controls or SEARCHES[config.search].judges
        return frozenset(["probability"] if judges else [])

    def uses_seed(self, config: Config) -> bool:
        draws = config.sample_rate is not None or config.sample_size is not None
        return bool(config.controls) or draws or SEARCHES[config.search].seeded

    def needs_resident(self, params: Mapping[str, Any]) -> str | None:
        search = SEARCHES.get(str(params.get("search", "gradient")))
        if search is not None and search.gradients:
            return "search: gradient needs gradients; use screen, cascade, surrogate or low-norm"
        return None

    def limits(self, config: Config) -> tuple[int | None, tuple[str, ...]]:
        # A search that learns from whole rounds would continue differently after a part of one, and
        # controls are drawn once the search has ended.
        whole = SEARCHES[config.search].ends_itself or not (config.limit or 0) % self.round(config)
        if config.controls or not whole:
            return None, ()
        return config.limit, ("budget", "iterations")

    def stop_at(self, config: Config, count: int) -> int | None:
        if not self.limits(config)[1]:
            return None
        return count if SEARCHES[config.search].ends_itself else count - count % self.round(config)

    def limited(self, config: Config, most: int) -> dict[str, Any]:
        shorter = config.budget is None or config.budget > most
        return super().limited(config, most) | ({"budget": most} if shorter else {})

    def round(self, config: Config) -> int:
        """The number of tokens that a round of the search verifies."""
        # The gradient search verifies no more than the neighbours that it considers.
        gradients = SEARCHES[config.search].gradients
        return min(config.batch_size, config.k) if gradients else config.batch_size

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        search, limit = SEARCHES[config.search], vocab
        if config.limit is not None:
            limit = min(vocab, config.limit)
        tokens = limit + CONTROLS_EACH * config.controls
        if search.screened:
            found = verification(tokens, config.probes, screens=vocab)
            ends_by_recall = search.ends_itself and config.budget is None
            return replace(found, caveat=_few_found(config.recall)) if ends_by_recall else found
        if not search.gradients:
            return verification(tokens, config.probes)
        return verification(tokens, config.probes, gradients=-(-limit // self.round(config)))

    def likely_work(self, config: Config, bounds: Work, expected: Expectation) -> Work:
        search, scope = SEARCHES[config.search], expected.size
        limit = scope if config.limit is None else min(scope, config.limit)
        glitches = round(scope * expected.glitch_share)
        if search.ends_itself:
            verified = usual_cascade(scope, glitches, config.recall, config.confidence)
            limit = min(limit, verified)
        if search.screened:
            found = min(limit, glitches)
        else:
            found = min(glitches, round(_LEARNS * limit * expected.glitch_share), limit)
        usual = verification(
            limit + config.controls, config.probes, bounds.gradients, bounds.screens
        )
        return replace(usual, found=found)

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        search = SEARCHES[config.search]
        positions = probe_positions(config.probes) + system
        if search.screened:
            yield Workload(step, batch=None, positions=positions, kind="screen")
        yield Workload(
            step,
            batch=None if search.ends_itself else config.batch_size,
            positions=positions,
            gradient=search.gradients,
            search=config.search,
            verified=config.limit,
            controls=bool(config.controls),
            generated=generated_positions(config.probes),
        )


def usual_cascade(scope: int, glitches: int, recall: float, confidence: float) -> int:
    """Tokens that a cascade verifies if its screen is good and its first audit suffices.

    The audit is the smallest sample that, without a glitch token in it, bounds the missed tokens
    well enough. Instead of the exact sample (`glitchrun.search.recall.sample_size`, which needs
    scipy) this takes a known approximation of the hypergeometric distribution:
    (1 - alpha^(1 / (m + 1))) (N - m / 2) for at most m missed of N.
    """
    from fractions import Fraction  # takes 4 ms, which `glitchrun validate` does not need

    front = min(scope, _HITS_EACH * glitches + _FRONT_END)
    rest = scope - front
    exact = Fraction(str(recall))
    allowed = int(glitches * (1 - exact) / exact)
    if allowed >= rest:
        return front
    alpha = (1 - confidence) * _FIRST_AUDIT
    least = (1 - alpha ** (1 / (allowed + 1))) * (rest - allowed / 2)
    return front + math.ceil(min(least, rest))


def _few_found(recall: float) -> str:
    """The caveat of a cascade: if the vocabulary has few glitch tokens, it may miss none, and
    verifies nearly everything."""
    from fractions import Fraction  # takes 4 ms, which `glitchrun validate` does not need

    exact = Fraction(str(recall))
    fewest = math.ceil(exact / (1 - exact))
    return (
        f"If the scope has fewer than {fewest} glitch token{'s' * (fewest > 1)}, nearly every "
        "token is verified, "
        f"because a recall of {recall:g} then allows none to be missed. A "
        "budget or a lower recall limits this."
    )
