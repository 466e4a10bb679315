"""`genetic`: evolves token sequences that change what a model says next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.plan.work import named_tokens, probe_positions, text_positions
from glitchrun.spec.nodes import Document
from glitchrun.spec.problems import Problem
from glitchrun.spec.strategy import Strategy, TextLength, Work, Workload, read_fragment
from glitchrun.strategies.prompt_lengths import PromptLengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    base_text: str
    """The text that sequences are put in front of."""
    format: str = "chat"
    """`chat`: sequence and text in the spec's template; `raw`: without template."""
    prefill: str = ""
    """How the answer begins, or with `raw` how the text continues."""
    target: int | str | None = None
    """Token whose probability is to fall; None for the model's own most likely next token."""
    wanted: int | str | None = None
    """Token whose probability is to rise."""
    objective: str = "auto"
    """`target`, `wanted`, `both`, or `auto`: the goals that are given."""
    pool: Mapping[str, Any] | None = None
    """Tokens that sequences consist of; None for the experiment's scope."""
    pool_pattern: str | None = None
    """Regular expression that tokens of the pool must match, anywhere in their text."""
    ascii_only: bool = False
    """Whether only printable ASCII tokens of the pool are kept."""
    wanted_in_pool: bool = False
    """Whether sequences may contain the wanted token, up to case and spaces."""
    min_tokens: int = 1
    """Length of the shortest sequence."""
    max_tokens: int = 3
    """Length of the longest sequence: short ones are easier to search and to explain."""
    population: int = 50
    """Sequences in each generation."""
    generations: int = 50
    """Generations bred after the first population."""
    elite: int = 5
    """Fittest sequences that are kept unchanged."""
    tournament: int = 3
    """Sequences drawn for each parent, of which the fittest is taken."""
    crossover: float = 0.7
    """Probability that a child has two parents."""
    mutation: str = "adaptive"
    """How the mutation rate changes: `linear`, `adaptive` or `constant`."""
    mutation_start: float = 0.8
    """Probability that a child of the first generation is mutated."""
    mutation_end: float = 0.1
    """Probability that a child of the last generation is mutated."""
    impact_tokens: int | str = 500
    """Tokens of the pool whose effect alone is measured first; `all`, or 0 for none."""
    seed_ratio: float = 0.7
    """Share of the first population that consists of the most effective single tokens."""
    seed_top: int = 20
    """How many of the most effective single tokens are used."""
    diversity_after: int = 10
    """Generations without progress after which random sequences replace the least fit."""
    diversity_share: float = 0.3
    """Share of the population that they replace."""
    early_stop: float | None = 0.999
    """Fitness at which the search ends; None for no such limit."""
    patience: int | None = None
    """Generations without progress after which the search ends; None for no such limit."""


class Genetic(Strategy):
    """Evolves token sequences that lower a target's or raise a wanted token's probability."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("schema.json"))
    code = f"{__name__}.run:run"
    prompt_code = f"{__name__}.run:prompt_ids"
    example = '  - {id: genetic, strategy: genetic, base_text: "The quick brown", format: raw}'
    figures = (
        "glitchrun.report.figures.generations:draw_fitness",
        "glitchrun.report.figures.generations:draw_ancestry",
        "glitchrun.report.figures.next_token:draw_before_after",
    )

    def problems(
        self, document: Document, index: int, step: Mapping[str, Any]
    ) -> Iterator[Problem]:
        """Parameters that contradict each other."""

        def value(name: str) -> Any:
            return step.get(name, self.fragment["properties"][name].get("default"))

        for smaller, larger, strictly in (
            ("min_tokens", "max_tokens", False),
            ("elite", "population", True),
        ):
            low, high = value(smaller), value(larger)
            numbers = isinstance(low, int) and isinstance(high, int)
            if numbers and (low > high or (strictly and low == high)):
                name = smaller if smaller in step else larger
                relation = "smaller than" if strictly else "at most"
                message = f"{smaller} ({low}) must be {relation} {larger} ({high})"
                yield document.problem("GR313", ("steps", index, name), message)
        if value("objective") in ("wanted", "both") and "wanted" not in step:
            message = f"objective: {step['objective']} needs a 'wanted' token"
            yield document.problem("GR310", ("steps", index, "objective"), message)

    def needs_resident(self, params: Mapping[str, Any]) -> str | None:
        return "it would read the whole model for every few sequences"

    def takes_scope(self, config: Config) -> bool:
        return config.pool is None

    def steering(self, config: Config) -> frozenset[str]:
        return frozenset()

    def limited(self, config: Config, most: int) -> dict[str, Any]:
        asked = {"generations": config.generations, "impact_tokens": config.impact_tokens}
        return {name: most for name, n in asked.items() if isinstance(n, str) or n > most}

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        pool = vocab if config.pool is None else named_tokens(config.pool, earlier, vocab)
        asked = config.impact_tokens
        singles = pool if isinstance(asked, str) else min(asked, pool)
        bred = config.population * (config.generations + 1)
        # The prompt without a sequence runs twice, and once more with the best one.
        return Work(tokens=singles, prompts=singles + bred + 3)

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        text = text_positions(config.base_text + config.prefill)
        positions = probe_positions(("repeat",)) + text + config.max_tokens + system
        yield Workload(step, batch=None, positions=positions, kind="score")

    def text_lengths(self, config: Config, prompts: PromptLengths) -> Iterator[TextLength]:
        prompt = prompts.of_slot(config.base_text, config.prefill, chat=config.format == "chat")
        yield TextLength("max_tokens", prompt, config.max_tokens)
