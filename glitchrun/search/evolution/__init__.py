"""Evolves sequences of token ids towards a fitness that somebody else measures.

Model-blind: `Evolution.propose` names sequences, `Evolution.update` is told their fitness. Every
random number comes from a generator made for (seed, purpose, generation), so a search resumes by
being told again what was measured.
"""

from __future__ import annotations

from glitchrun.search.evolution.evolution import Birth, Evolution, Generation
from glitchrun.search.evolution.objective import increase, reduction
from glitchrun.search.evolution.settings import Ids, Settings

__all__ = ["Birth", "Evolution", "Generation", "Ids", "Settings", "increase", "reduction"]
