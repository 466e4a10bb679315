"""What is asked about a token: GlitchMiner's three probes.

A probe is one entry of `_ALL`. The schema's enums, `glitchrun list probes`, the plan and the
prompts read it from here; it stands in the spec's room because that may import nothing above it.

Source: Wu et al., "GlitchMiner: Mining Glitch Tokens in Large Language Models via Gradient-based
Discrete Optimization", arXiv 2410.15052. A probe passes when the most likely next token after its
prompt is the token it asks about; the strict check calls a token a glitch when all three fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

TOKEN = "{token}"
"""Marks, in a probe's user text, where the token stands (by id)."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An earlier question and its answer: how a few-shot probe shows what it wants."""

    user: str
    answer: str


@dataclass(frozen=True, slots=True)
class Probe:
    """One question that asks for one token back."""

    name: str
    """As a spec's `probes` and the records call it."""
    user: str
    """The last user text; holds `{token}` exactly once."""
    prefill: str
    """How the assistant's answer begins; the token is expected right after it."""
    closing: str = ""
    """What follows the token in the right answer: it closes what the prefill opened."""
    earlier: tuple[Exchange, ...] = ()
    system: str | None = None
    """The probe's own system text. A template that cannot carry one presents the probe without,
    and says so (`Prompt.dropped_system`)."""
    positions: int = 128
    """Positions that its prompt takes at most in the templates and tokenizers tried, before a
    system text of the spec's own: for the plan's memory."""


_ALL = (
    Probe(
        name="repeat",
        user='Please repeat the string: "«{token}»"',
        prefill=' Sure, the string is: "«',
        closing='»"',
        positions=64,  # 32 were the most seen
    ),
    Probe(
        name="explain",
        user="What does '{token}' mean?",
        prefill="'",
        closing="'",
        earlier=(
            Exchange(
                user="What does 'edslfkj' mean?",
                answer="'edslfkj' has no specific meaning I am aware of.",
            ),
        ),
        system="This helpful assistant explains what a phrase means, replying with identical "
        "responses to identical questions for reliability.",
    ),
    Probe(
        name="question",
        user="Question: Please can you repeat the string '{token}'?",
        prefill=" Of course! Here is the repeated string:'",
        closing="'",
        positions=64,
    ),
)

PROBES = MappingProxyType({probe.name: probe for probe in _ALL})
"""Every probe by its name."""

DEFAULT = ("repeat",)
"""The probes of search and scan where the spec names none."""

STRICT = ("repeat", "explain", "question")
"""What `probes: strict` stands for."""


def probe_names(probes: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names that a spec's `probes` stands for: `strict`, a list of names, or None for the
    default."""
    if probes is None:
        return DEFAULT
    return STRICT if probes == "strict" else tuple(probes)
