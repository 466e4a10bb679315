"""A conversation of several turns as ids, each turn appended to the ids before it.

What was said stays as it was said: a model's own ids are never decoded and encoded again, and the
keys and values of earlier turns stay valid.
"""

from __future__ import annotations

from dataclasses import dataclass

from glitchrun.prompts import chat_template, conversation
from glitchrun.prompts.conversation import Conversation
from glitchrun.prompts.render import begin, write
from glitchrun.prompts.template import Template
from glitchrun.prompts.tokenizer import Tokenizer, encode_inside, joined, marked


@dataclass(frozen=True, slots=True)
class Dialogue:
    """How the turns of one conversation are written."""

    template: Template
    tokenizer: Tokenizer
    system: str | None = None
    """None for none; the caller has asked whether the template carries one."""

    def open(self, user: str) -> tuple[int, ...]:
        """Ids of the first turn, up to where the answer begins, with what belongs in front.

        Raises PreflightError where the tokenizer's chat template refuses the conversation.
        """
        found = marked(user)
        said = Conversation(user=found.text, system=self.system)
        before, *after = write(self.template, said, self.tokenizer).split(found.mark)
        _, _, ids = begin(self.template, before, self.tokenizer)
        return joined(ids, found.ids, after, self.tokenizer)

    def go_on(self, user: str, *, closed: bool = False) -> tuple[int, ...]:
        """Ids from the end of an answer to where the next one begins.

        Args:
            user: The next user text.
            closed: The answer's own ids hold the template's closing text. Where an answer ended
                with a single closing id, that id is not part of it, and is written here.

        Raises PreflightError where the tokenizer's chat template knows no second turn.
        """
        found = marked(user)
        if self.template.family is None:
            text = chat_template.write_next(self.tokenizer, found.text, self.template.variables)
        else:
            text = conversation.write_next(self.template.family, found.text, closed=closed)
        before, *after = text.split(found.mark)
        return joined(encode_inside(self.tokenizer, before), found.ids, after, self.tokenizer)

    @property
    def rewritten(self) -> bool:
        """Whether the template itself would write earlier turns differently as the talk goes on."""
        if self.template.family is not None:
            return False
        return chat_template.rewrites(self.tokenizer, self.system, self.template.variables)
