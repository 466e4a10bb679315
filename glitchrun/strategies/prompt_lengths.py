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

    def of_probes(self, probes: Probes, max_new_tokens: int | None) -> Iterator[TextLength]:
        """The prompt of each probe with its token, and the continuation sampled after it."""
        # The last token sampled is not run through the model.
        more = max(0, int(max_new_tokens or 1) - 1)
        for probe in probes_of(probes):
            generated = more or probe.generated
            yield TextLength("max_new_tokens" if more else "probes", self._probe(probe), generated)

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

        text = prompt.get("expected")
        return max(0, len(encode_inside(self.tokenizer, f" {text}")) - 1) if text else 0

    def _written(self, prompt: Mapping[str, Any], form: str) -> int:
        from glitchrun.prompts.render import render_text

        kind, _, variant = form.partition("-")
        prefill = " " if variant == "space" else ""
        if kind == "chat":
            user, system = prompt.get("chat", prompt["text"]), self.spec.system
            return len(render_text(self.template, user, self.tokenizer, system, prefill)[1])
        return len(render_text(self._raw(), prompt["text"], self.tokenizer, prefill=prefill)[1])

    def _raw(self) -> Template:
        from glitchrun.prompts.detect import detect

        return detect("raw", self.tokenizer, self.config, self.spec.model.path)
