"""The small stand-in for nowllm-0829: a trained Mixtral of 640 tokens with known glitch tokens.

`python -m tools.standin oracle tests/data/oracle/nowllm-0829` made it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from glitchrun.spec.types import Thresholds
from glitchrun.strategies.context import Context
from tests.support.engine import context

FOLDER = Path(__file__).parents[1] / "data" / "oracle" / "nowllm-0829"
NOTE = json.loads((FOLDER / "planted.json").read_text(encoding="utf-8"))
PLANTED = frozenset(NOTE["planted"])
"""Tokens that never occurred in training."""
QUANTIZATIONS = ("float32", "bfloat16", "int8", "int4")


@cache
def oracle(quantization: str) -> Context:
    """The stand-in with everything a strategy is given; the template is detected."""
    return context(
        FOLDER,
        quantization=quantization,
        template="auto",
        seed=5,
        thresholds=Thresholds(asr=0.5),
    )
