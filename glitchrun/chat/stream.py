"""Sampled ids as text, as soon as it is certain."""

from __future__ import annotations

from glitchrun.prompts.tokenizer import ANCHOR, Tokenizer, encode

_OPTIONS = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


class Stream:
    """Decodes an answer id by id.

    Text is held back while it may still change: half a character, or what may be the beginning of
    `stop`. Only ids since the last text given out are decoded again, so a long answer costs no more
    a token than a short one (the method of vLLM's incremental detokenizer).
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        # An answer's first piece is decoded behind something, or it would lose its space.
        self._ids = list(encode(tokenizer, ANCHOR))
        self._from, self._to = 0, len(self._ids)
        self._held = ""
        self.stopped = False
        """Whether `stop` has been said."""

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._from : self._to])
        now = self._decode(self._ids[self._from :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._from, self._to = self._to, len(self._ids)
        return self._certain(now[len(before) :])

    def end(self) -> str:
        """The rest, once no more ids come."""
        before = self._decode(self._ids[self._from : self._to])
        rest = self._decode(self._ids[self._from :])[len(before) :]
        self._from, self._to = self._to, len(self._ids)
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
