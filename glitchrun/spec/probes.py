"""The probes: the prompts that ask a model to repeat, spell or measure a token; and protocols.

A probe is one entry of `_ALL`, or one that a spec defines under `probes`. A protocol is a named set
of probes with a rule for glitch tokens. The schema, `glitchrun list probes`, the plan and the
prompts read the tables. Other packages add probes through the entry point group `glitchrun.probes`.

Sources:
    strict        Wu et al., "GlitchMiner: Mining Glitch Tokens in Large Language Models via
                  Gradient-based Discrete Optimization", arXiv 2410.15052
    magikarp      Land and Bartolo, "Fishing for Magikarp: Automatically Detecting Under-trained
                  Tokens in Large Language Models", arXiv 2405.05417
    glitchhunter  Li et al., "Glitch Tokens in Large Language Models: Categorization Taxonomy and
                  Effective Detection", arXiv 2404.09894
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from glitchrun.spec.registry import Registry

TOKEN = "{token}"
"""The place of the token in the texts of a probe."""
USUAL_POSITIONS = 18
"""Positions that are run for each token in a usual probe, with one for the head."""
_CHARACTERS_EACH, _TURN, _ANSWER = 2, 4, 16
"""For estimates of positions: characters of short texts with many marks in each, what a template
adds to a turn, and a generated answer. With SmolLM2 they give 18 for `repeat` (17 measured) and
256 for `input_output` (246)."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An earlier question and its answer, as an example in a few-shot prompt."""

    user: str
    answer: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt whose right answer is the token, its spelling, or its length."""

    name: str
    """As a spec's `probes` and the records call it."""
    user: str
    """The last user text; contains `{token}`."""
    prefill: str
    """How the assistant's answer begins; the token is expected right after it."""
    closing: str = ""
    """The text that follows the token in the right answer, such as a closing quotation mark."""
    earlier: tuple[Exchange, ...] = ()
    """Examples before the question; they may contain `{token}` as well."""
    system: str | None = None
    """The probe's own system text. Where the template has no place for one, the probe is presented
    without it, and `Prompt.dropped_system` contains it."""
    positions: int = 128
    """Upper bound on the prompt's length in tokens, without a system text of the spec: the plan
    estimates memory with it. Measured over the built-in templates and several tokenizers."""
    expect: str = "token"
    """What passes: the `token` itself, its `spelling` (its characters joined by hyphens), or its
    `length` (in characters). Spelling and length are compared as text."""
    within: int = 1
    """The token may come at any of this many greedy positions; its largest probability counts."""
    probability: float | None = None
    """The token's probability from which the probe passes; None where the token must be the most
    probable one."""
    raw: bool = False
    """Whether the texts are joined as they are, whatever the template: for base models."""

    @property
    def is_text(self) -> bool:
        """Whether an answer is generated and compared as text."""
        return self.expect != "token"

    @property
    def is_plain(self) -> bool:
        """Whether one next-token distribution decides, by its most probable token."""
        return not self.is_text and self.within == 1 and self.probability is None

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of the prompt, in order."""
        turns = (text for one in self.earlier for text in (one.user, one.answer))
        return (self.system or "", *turns, self.user, self.prefill)

    @property
    def slots(self) -> int:
        """How often the prompt contains the token."""
        return "".join(self.texts).count(TOKEN)

    @property
    def is_usual(self) -> bool:
        """Whether it costs what most probes do: one distribution after one place of the token."""
        return self.is_plain and self.slots == 1

    @property
    def generated(self) -> int:
        """Positions of a usual answer that are run after the prompt."""
        return _ANSWER if self.is_text else self.within - 1

    @property
    def cost(self) -> int:
        """About how many positions are run for each token: the prefix before it is shared."""
        if self.is_usual:
            return USUAL_POSITIONS
        texts = self.texts
        first = next(place for place, text in enumerate(texts) if TOKEN in text)
        after = "".join(texts).partition(TOKEN)[2].replace(TOKEN, "")
        turns = 0 if self.raw else _TURN * (len(texts) - 1 - first)
        return self.slots + round(len(after) / _CHARACTERS_EACH) + turns + self.generated

    def definition(self) -> dict[str, Any]:
        """What decides the results of a probe that a spec defines, without defaults."""
        found = {key: value for key, value in asdict(self).items() if key != "positions"}
        defaults = {one.name: one.default for one in fields(self)}
        return {key: value for key, value in found.items() if value != defaults[key]}


@dataclass(frozen=True, slots=True)
class Protocol:
    """A set of probes with a name, and the rule by which they make a glitch token."""

    name: str
    probes: tuple[str, ...]
    source: str
    """Who published it, for people."""
    any: bool = False
    """Whether failing one of the probes is enough; otherwise a glitch token fails all."""

    @property
    def rule(self) -> str:
        """When a token is a glitch token, in words."""
        return f"fails {'any' if self.any else 'each'} of {', '.join(self.probes)}"


_LEAST = 0.01
"""Land and Bartolo count tokens below this probability."""
_SHOT = Exchange(
    "\nInput: «{token}»\nOutput:",
    " «{token}»",
)
_HELLO = "Question: Please can you {what} the string 'Hello'?"
_SPELL = "spell, with hyphens between the characters,"
_MEASURE = "count the characters of"

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
    # Land and Bartolo's prompts, with the first shot's preamble in front of it.
    Probe(
        name="input_output",
        user=_SHOT.user,
        prefill=" «",
        closing="»",
        earlier=(
            Exchange(
                "This device repeats its input exactly, as shown in these 100 identical trials."
                + _SHOT.user,
                _SHOT.answer,
            ),
            *[_SHOT] * 19,
        ),
        positions=400,  # 268 with SmolLM2's tokenizer
        within=3,
        probability=_LEAST,
        raw=True,
    ),
    Probe(
        name="assistant_explain",
        user="This helpful assistant explains what a phrase means, replying with identical "
        "responses to identical questions for reliability.\nUser: What does 'edslfkj' mean?\n"
        "Assistant: 'edslfkj' has no specific meaning I am aware of.\n"
        "User: what does '{token}' mean?\nAssistant:",
        prefill=" '",
        closing="'",
        within=3,
        probability=_LEAST,
        raw=True,
    ),
    Probe(
        name="repeats",
        user="Below is the output, as you can see it's just giving the same phrase repeated "
        "indefinitely:\n" + TOKEN * 101,
        prefill="",
        positions=160,  # 121 with SmolLM2's tokenizer
        within=3,
        probability=_LEAST,
        raw=True,
    ),
    Probe(
        name="spelling",
        user=_HELLO.format(what=_SPELL).replace("Hello", TOKEN),
        prefill=" Sure! The spelling of this string is:",
        earlier=(
            Exchange(
                _HELLO.format(what=_SPELL), " Sure! The spelling of this string is: H-e-l-l-o"
            ),
        ),
        expect="spelling",
    ),
    Probe(
        name="length",
        user=_HELLO.format(what=_MEASURE).replace("Hello", TOKEN),
        prefill=" Sure! The length of this string is:",
        earlier=(Exchange(_HELLO.format(what=_MEASURE), " Sure! The length of this string is: 5"),),
        expect="length",
    ),
)

PROBES = Registry("probe", "glitchrun.probes", Probe, {probe.name: probe for probe in _ALL})
"""Every probe by its name."""

DEFAULT = ("repeat",)
"""The probes of search and scan where the spec names none."""

PROTOCOLS: Mapping[str, Protocol] = {
    one.name: one
    for one in (
        Protocol("strict", ("repeat", "explain", "question"), "GlitchMiner, Wu et al. 2024"),
        Protocol(
            "magikarp", ("input_output", "assistant_explain", "repeats"), "Land and Bartolo 2024"
        ),
        Protocol(
            "glitchhunter",
            ("question", "spelling", "length"),
            "GlitchHunter, Li et al. 2024",
            any=True,
        ),
    )
}
"""Every protocol by its name."""

STRICT = PROTOCOLS["strict"].probes
"""The probes that `probes: strict` means."""

Probes = str | Sequence[str | Probe] | None
"""The probes of a step: a protocol, names of probes and protocols, or None for the default. A
Config contains the definitions of a spec in place of their names (`resolved`)."""


def probe_names(probes: Probes) -> tuple[str, ...]:
    """The names of the probes that a step's `probes` means, each once."""
    found: dict[str, None] = {}
    for one in _listed(probes):
        if isinstance(one, Probe):
            found[one.name] = None
        else:
            found |= dict.fromkeys(PROTOCOLS[one].probes if one in PROTOCOLS else (one,))
    return tuple(found)


def probes_of(probes: Probes) -> tuple[Probe, ...]:
    """The probes that a step's `probes` means, each once.

    Raises:
        KeyError: a name is neither in the tables nor resolved.
    """
    own = {one.name: one for one in _listed(probes) if isinstance(one, Probe)}
    return tuple(own[name] if name in own else PROBES[name] for name in probe_names(probes))


def any_of(probes: Probes) -> tuple[tuple[str, ...], ...]:
    """Groups of probes in which one failure is enough. A glitch token fails every other probe."""
    named = [one for one in _listed(probes) if isinstance(one, str)]
    return tuple(PROTOCOLS[one].probes for one in named if one in PROTOCOLS and PROTOCOLS[one].any)


def resolved(probes: Probes, defined: Mapping[str, Probe]) -> Probes:
    """`probes` with the definitions of a spec in place of their names."""
    if isinstance(probes, str) or probes is None or not defined:
        return probes
    return tuple(defined.get(one, one) if isinstance(one, str) else one for one in probes)


def defined_probe(name: str, given: Mapping[str, Any]) -> Probe:
    """The probe that a valid spec defines as `probes.NAME`."""
    passes = given.get("pass", {})
    shots = tuple(Exchange(one["user"], one["answer"]) for one in given.get("shots", ()))
    probe = Probe(
        name=name,
        user=given["user"],
        prefill=given.get("prefill", ""),
        earlier=shots,
        system=given.get("system"),
        expect=given.get("expect", "token"),
        within=given.get("positions", 1),
        probability=passes.get("probability"),
        raw=given.get("raw", False),
    )
    # Two bytes a token are few; every turn of a template adds a dozen tokens at most.
    length = sum(len(text.encode()) for text in probe.texts) // 2 + 16 * (2 * len(shots) + 3)
    return Probe(**{f.name: getattr(probe, f.name) for f in fields(probe)} | {"positions": length})


def _listed(probes: Probes) -> Iterator[str | Probe]:
    yield from DEFAULT if probes is None else (probes,) if isinstance(probes, str) else probes
