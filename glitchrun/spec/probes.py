"""The probes: the prompts that ask a model to repeat a token.

A probe is one entry of `_ALL`. The schema's enums, `glitchrun list probes`, the plan and the
prompts read the table. Other packages add probes through the entry point group `glitchrun.probes`.

Source: Wu et al., "GlitchMiner: Mining Glitch Tokens in Large Language Models via Gradient-based
Discrete Optimization", arXiv 2410.15052. A token passes a probe when it is the most likely next
token after the probe's prompt; the strict check calls a token a glitch when it fails all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glitchrun.spec.registry import Registry

TOKEN = "{token}"
"""The place of the token in a probe's user text."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An earlier question and its answer, as an example in a few-shot prompt."""

    user: str
    answer: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt whose right answer is the token."""

    name: str
    """As a spec's `probes` and the records call it."""
    user: str
    """The last user text; contains `{token}` exactly once."""
    prefill: str
    """How the assistant's answer begins; the token is expected right after it."""
    closing: str = ""
    """The text that follows the token in the right answer, such as a closing quotation mark."""
    earlier: tuple[Exchange, ...] = ()
    system: str | None = None
    """The probe's own system text. Where the template has no place for one, the probe is presented
    without it, and `Prompt.dropped_system` contains it."""
    positions: int = 128
    """Upper bound on the prompt's length in tokens, without a system text of the spec: the plan
    estimates memory with it. Measured over the built-in templates and several tokenizers."""


_ALL = (
    Probe(
        name="repeat",
        user='Please repeat the string: "«{token}»"',
        prefill=' Sure, the string is: "«',
        closing='»"',
        positions=64,  # the longest measured prompt has 32
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

PROBES = Registry("probe", "glitchrun.probes", Probe, {probe.name: probe for probe in _ALL})
"""Every probe by its name."""

DEFAULT = ("repeat",)
"""The probes of search and scan where the spec names none."""

STRICT = ("repeat", "explain", "question")
"""The probes that `probes: strict` means."""


def probe_names(probes: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of the probes that a spec's `probes` means.

    Args:
        probes: `strict`, a list of names, or None for the default.
    """
    if probes is None:
        return DEFAULT
    return STRICT if probes == "strict" else tuple(probes)
