"""How often children are mutated, generation by generation."""

from __future__ import annotations

from glitchrun.search.evolution.settings import Settings


def mutation_rate(settings: Settings, generation: int, stagnant: int) -> float:
    """The chance that a child of this generation (from 1) is mutated.

    constant stays at mutation_start; linear falls from there to mutation_end in the last
    generation; adaptive falls as linear does, but rises again with the generations that brought
    nothing better, back to mutation_start where fresh blood is due (`diversity_after`).
    """
    if settings.mutation == "constant":
        return settings.mutation_start
    height = 1 - (generation - 1) / max(1, settings.generations - 1)
    if settings.mutation == "adaptive":
        height = max(height, min(1.0, stagnant / settings.diversity_after))
    return settings.mutation_end + (settings.mutation_start - settings.mutation_end) * height
