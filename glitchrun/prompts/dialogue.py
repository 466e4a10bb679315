"""A conversation of several turns as ids, each turn appended to the ids before it.

What was said stays as it was said: a model's own ids are never decoded and encoded again, and the
keys and values of earlier turns stay valid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from glitchrun.prompts import chat_template, conversation
from glitchrun.prompts.conversation import Conversation
from glitchrun.prompts.render import begin, write
from glitchrun.prompts.template import Template
from glitchrun.prompts.tokenizer import Tokenizer, encode_inside

BY_ID = re.compile(r"<#(\d+)>")
"""How a user text names a token by its id: `<#31415>`."""
# Begins what stands for such a token while the text is put together: letters only, so that no
# template alters it.
_MARK = "Xglitchruntoken"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """How the turns of one conversation are written."""

    template: Template
    tokenizer: Tokenizer
    system: str | None = None
    """None for none; the caller has asked whether the template carries one."""

    def open(self, user: str) -> tuple[int, ...]:
        """Ids of the first turn, up to where the answer begins; exactly one BOS where one belongs.

        Raises PreflightError where the tokenizer's chat template refuses the conversation.
        """
        marked, mark, named = _take_ids(user)
        said = Conversation(user=marked, system=self.system)
        before, *after = write(self.template, said, self.tokenizer).split(mark)
        _, _, ids = begin(self.template, before, self.tokenizer)
        return self._join(ids, named, after)

    def go_on(self, user: str, *, closed: bool = False) -> tuple[int, ...]:
        """Ids from the end of an answer to where the next one begins.

        Args:
            user: The next user text.
            closed: The answer's own ids hold the template's closing text. Where an answer ended
                with a single closing id, that id is not part of it, and is written here.

        Raises PreflightError where the tokenizer's chat template knows no second turn.
        """
        marked, mark, named = _take_ids(user)
        if self.template.family is None:
            text = chat_template.write_next(self.tokenizer, marked, self.template.variables)
        else:
            text = conversation.write_next(self.template.family, marked, closed=closed)
        before, *after = text.split(mark)
        return self._join(encode_inside(self.tokenizer, before), named, after)

    @property
    def rewritten(self) -> bool:
        """Whether the template itself would write earlier turns differently as the talk goes on."""
        if self.template.family is not None:
            return False
        return chat_template.rewrites(self.tokenizer, self.system, self.template.variables)

    def _join(
        self, ids: tuple[int, ...], named: Sequence[int], texts: Sequence[str]
    ) -> tuple[int, ...]:
        for token_id, text in zip(named, texts, strict=True):
            ids = (*ids, token_id, *encode_inside(self.tokenizer, text))
        return ids


def _take_ids(user: str) -> tuple[str, str, list[int]]:
    """A user text with a mark in place of each token named by id, the mark, and those ids."""
    mark = f"{_MARK}X"
    while mark in user:
        mark = f"{mark}X"
    return BY_ID.sub(mark, user), mark, [int(found) for found in BY_ID.findall(user)]
