"""Turns sampled ids into text as soon as it is certain."""

from __future__ import annotations

from glitchrun.prompts.tokenizer import ANCHOR, Tokenizer, encode

_OPTIONS = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


class Detokenizer:
    """Decodes an answer id by id.

    Text that may still change is held back: a part of a character, or a possible beginning of
    `stop`. Only the ids since the last returned text are decoded again, so the cost per token does
    not grow with the answer (as in vLLM's incremental detokenizer).
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        # The first piece of an answer is decoded after an anchor, or it would lose its space.
        self._ids = list(encode(tokenizer, ANCHOR))
        self._start, self._end = 0, len(self._ids)
        """The ids whose text was returned last."""
        self._held = ""
        self.stopped = False
        """Whether the answer contains `stop`."""

    def push(self, token_id: int) -> str:
        """Appends an id; returns the text that has become certain."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._end])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return self._certain(now[len(before) :])

    def end(self) -> str:
        """Returns the rest of the text, after the last id."""
        before = self._decode(self._ids[self._start : self._end])
        rest = self._decode(self._ids[self._start :])[len(before) :]
        self._start, self._end = self._end, len(self._ids)
        text = self._certain(rest) + self._held
        self._held = ""
        return text

    def _certain(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        if not self._stop:
            return text
        text, found, _ = text.partition(self._stop)
        if found:
            self.stopped, self._held = True, ""
            return text
        keep = _overlap(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, **_OPTIONS)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
