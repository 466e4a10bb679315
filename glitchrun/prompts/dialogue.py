"""The ids of a chat: each turn is appended to the ids before it.

The ids that a model sampled are never decoded and encoded again, so the cached keys and values of
earlier turns stay valid.
"""

from __future__ import annotations

from dataclasses import dataclass

from glitchrun.prompts import chat_template
from glitchrun.prompts.render import write
from glitchrun.prompts.template import (
    Conversation,
    Template,
    encode_beginning,
    write_family_next,
)
from glitchrun.prompts.tokenizer import Tokenizer, encode_inside, joined, marked


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Writes the turns of one chat."""

    template: Template
    tokenizer: Tokenizer
    system: str | None = None
    """None for no system text; the caller checks that the template carries one."""

    def first_turn(self, user: str) -> tuple[int, ...]:
        """The ids of the first turn, with the opening ids, up to where the answer begins.

        Raises PreflightError where the tokenizer's chat template refuses the conversation.
        """
        found = marked(user)
        conversation = Conversation(user=found.text, system=self.system)
        before, *after = write(self.template, conversation, self.tokenizer).split(found.mark)
        _, _, ids = encode_beginning(self.template, before, self.tokenizer)
        return joined(ids, found.ids, after, self.tokenizer)

    def next_turn(self, user: str, *, closed: bool = False) -> tuple[int, ...]:
        """The ids between an answer and the next one.

        Args:
            user: The next user text.
            closed: Whether the answer's ids contain the template's closing text. They do not
                contain a single closing id; this method writes it.

        Raises PreflightError where the tokenizer's chat template supports no second turn.
        """
        found = marked(user)
        if self.template.family is None:
            text = chat_template.write_next(self.tokenizer, found.text, self.template.variables)
        else:
            text = write_family_next(self.template.family, found.text, closed=closed)
        before, *after = text.split(found.mark)
        return joined(encode_inside(self.tokenizer, before), found.ids, after, self.tokenizer)

    @property
    def rewrites_history(self) -> bool:
        """Whether the template would write earlier turns differently in later turns."""
        if self.template.family is not None:
            return False
        return chat_template.rewrites_history(self.tokenizer, self.system, self.template.variables)
