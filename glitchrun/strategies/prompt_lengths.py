"""Lengths of the prompts of a step, in tokens, before the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glitchrun.spec.probes import Probe, Probes, probes_of
from glitchrun.spec.strategy import TextLength
from glitchrun.spec.types import Spec

if TYPE_CHECKING:
    from glitchrun.prompts.template import Template
    from glitchrun.prompts.tokenizer import Tokenizer


PHRASE_SPARE = 2
"""Tokens that a greedy answer may have beyond the longer tokenization of its phrase."""


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """Measures prompts as a spec, a template and a tokenizer write them.

    `glitchrun.prompts` is imported by the methods, because the modules of the strategies import
    this one and must be imported quickly.
    """

    spec: Spec
    template: Template
    tokenizer: Tokenizer
    config: Any
    """The model's configuration, for the raw format."""

    def of_probes(
        self,
        probes: Probes,
        max_new_tokens: int | None,
        tokens: Mapping[str, Any] | None = None,
    ) -> Iterator[TextLength]:
        """The prompt of each probe with its token or phrase, and the answer after it.

        Args:
            probes: As in a Config.
            max_new_tokens: Of a sampled continuation; None where none is sampled.
            tokens: The step's parameter, if it has one.
        """
        # The last token generated is not run through the model.
        more = max(0, int(max_new_tokens or 1) - 1)
        phrase = self._longest_phrase(tokens or {})
        for probe in probes_of(probes):
            prefix, rest = self._parts(probe)
            if phrase is None:
                generated = more or self._answer(probe, tokens or {})
                yield TextLength("max_new_tokens" if more else "probes", prefix + rest, generated)
                continue
            place, length = phrase
            generated = more or length + probe.within - 1 + PHRASE_SPARE - 1
            extra = probe.slots * (length - 1)
            parameter = "max_new_tokens" if more > extra else place
            yield TextLength(parameter, prefix + rest + extra, generated)

    def _answer(self, probe: Probe, tokens: Mapping[str, Any]) -> int:
        """Positions of the longest generated answer about a token."""
        from glitchrun.behaviour.text_answers import most_tokens

        if not probe.is_text:
            return probe.generated
        if "ids" in tokens:
            texts = [self.tokenizer.decode([one]) for one in tokens["ids"]]
        else:
            texts = tokens.get("texts") or list(self.tokenizer.get_vocab())
        return most_tokens(probe.expect, max(texts, key=len, default="")) - 1

    def _longest_phrase(self, tokens: Mapping[str, Any]) -> tuple[str, int] | None:
        """The place and the length, in the longer tokenization, of the longest phrase that a step's
        `tokens` names or takes from other steps; None where it names single tokens."""
        if "from" in tokens:
            names = [tokens["from"]] if isinstance(tokens["from"], str) else tokens["from"]
            earlier = [step for step in self.spec.steps if step.id in names]
            found = [self._longest_phrase(step.params.get("tokens") or {}) for step in earlier]
            lengths = [one[1] for one in found if one is not None]
            return ("tokens.from", max(lengths)) if lengths else None
        source = tokens.get("phrases")
        if source is None:
            return None
        if "pairs" in source:  # drawn once the model is loaded
            return "tokens.phrases.pairs", 2
        key = "texts" if "texts" in source else "ids"
        given = list(enumerate(source[key]))[: source.get("limit")][: self.spec.limit]
        longest = f"tokens.phrases.{key}", 1
        # No token is shorter than a byte, so most phrases need not be encoded.
        for place, one in sorted(given, key=lambda item: len(item[1]), reverse=True):
            bound = 2 * (4 * len(one) + 1) if key == "texts" else None
            if bound is not None and bound <= longest[1]:
                break
            length = self._phrase(one)
            if length > longest[1]:
                longest = f"tokens.phrases.{key}[{place}]", length
        return longest

    def _phrase(self, named: str | Sequence[int]) -> int:
        """Ids of a phrase in its longer tokenization; of one that the step refuses, its own."""
        from glitchrun.vocabulary.phrases import phrase_of, phrase_of_text

        if isinstance(named, str):
            made = phrase_of_text(named, self.tokenizer)
        elif max(named) >= len(self.tokenizer):
            return len(named)
        else:
            made = phrase_of(named, self.tokenizer)
        return 1 if isinstance(made, str) else max(len(made.ids), len(made.control))

    def of_question(self, user: str) -> int:
        """Tokens of a user text with its token, in the template."""
        return self._probe(Probe("question", user, prefill=""))

    def of_prompts(
        self,
        prompts: Sequence[Mapping[str, Any]],
        formats: Sequence[str],
        max_new_tokens: int | None,
    ) -> Iterator[TextLength]:
        """Each prompt in each format, and what follows it: the expected or the generated text."""
        for place, prompt in enumerate(prompts):
            expected = self._expected(prompt)
            generated = max(0, int(max_new_tokens or 1) - 1)
            name = "max_new_tokens" if generated > expected else f"prompts[{place}]"
            for form in formats:
                yield TextLength(name, self._written(prompt, form), max(generated, expected))

    def of_slot(self, text: str, prefill: str, *, chat: bool) -> int:
        """Tokens of a prompt that has a place for sequences, without one."""
        from glitchrun.prompts.render import render_slot

        if chat:
            place = render_slot(self.template, text, self.tokenizer, self.spec.system, prefill)
        else:
            place = render_slot(self._raw(), text + prefill, self.tokenizer)
        return len(place.prefix_ids) + len(place.suffix_ids)

    def parts_of(self, probes: Probes) -> list[tuple[int, int]]:
        """For each probe the tokens of the prefix, and of the token with what follows it."""
        return [self._parts(probe) for probe in probes_of(probes)]

    def _probe(self, probe: Probe) -> int:
        return sum(self._parts(probe))

    def _parts(self, probe: Probe) -> tuple[int, int]:
        from glitchrun.prompts.render import render

        prompt = render(self.template, probe, self.tokenizer, self.spec.system)
        return len(prompt.prefix_ids), 1 + len(prompt.suffix_ids)

    def _expected(self, prompt: Mapping[str, Any]) -> int:
        """Tokens of the expected text that are run through the model: all but its last."""
        from glitchrun.prompts.tokenizer import encode_inside

        text = prompt.get("expected", "")
        forms = (text, text[1:] if text.startswith(" ") else f" {text}") if text else ()
        return max((len(encode_inside(self.tokenizer, one)) - 1 for one in forms), default=0)

    def _written(self, prompt: Mapping[str, Any], form: str) -> int:
        from glitchrun.prompts.render import render_text
        from glitchrun.prompts.tokenizer import without_ids

        kind, _, variant = form.partition("-")
        if variant == "usual":
            texts = {key: prompt[key] for key in ("text", "chat") if key in prompt}
            prompt = {key: without_ids(one, self.tokenizer) for key, one in texts.items()}
        prefill = " " if variant == "space" else ""
        if kind == "chat":
            user, system = prompt.get("chat", prompt["text"]), self.spec.system
            return len(render_text(self.template, user, self.tokenizer, system, prefill)[1])
        return len(render_text(self._raw(), prompt["text"], self.tokenizer, prefill=prefill)[1])

    def _raw(self) -> Template:
        from glitchrun.prompts.detect import detect

        return detect("raw", self.tokenizer, self.config, self.spec.model.path)
