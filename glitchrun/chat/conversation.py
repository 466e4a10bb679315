"""A conversation: its turns, the reason why each ended, the next-token table, the KV cache of its
ids, and their text as it becomes certain. `chat/loop.py` drives a `ChatSession`; `cli/chat.py`
creates it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glitchrun.errors import UsageError
from glitchrun.probing.backend import Backend
from glitchrun.probing.token_choice import SamplingParams, choose_tokens, rng_key
from glitchrun.prompts.dialogue import Dialogue
from glitchrun.prompts.template import Template, stop_ids
from glitchrun.prompts.tokenizer import (
    ANCHOR,
    Tokenizer,
    check_rows,
    describe_token,
    encode,
    missing_rows,
)
from glitchrun.spec.token_ids import BY_ID


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How answers are sampled. The same seed and the same turns give the same answers."""

    params: SamplingParams
    """Temperature and nucleus."""
    max_new_tokens: int
    """Tokens of an answer at most."""
    seed: int
    """Of all random numbers."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    user: str
    asked_ids: tuple[int, ...]
    """The ids appended for the question: the end of the answer before it, and the user turn."""
    answer: str
    answer_ids: tuple[int, ...]
    """Without the stop id."""
    ended: str
    """end: by the model; length: by max_new_tokens; context: by the model's positions; stopped: by
    the user."""
    closed: bool = False
    """Whether the answer's ids contain the template's stop text."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """One row of the next-token table."""

    rank: int
    token_id: int
    p: float
    """Probability, before temperature and nucleus."""


class ChatSession:
    """A conversation with a loaded model. The KV cache is kept between turns until a reset.

    Raises:
        PreflightError: The template contains ids for which the model's embedding has no row.
    """

    def __init__(
        self,
        backend: Backend,
        template: Template,
        settings: ChatSettings,
        system: str | None = None,
    ) -> None:
        self.template = template
        self.settings = settings
        self.turns: list[Turn] = []
        self.generating = False
        """Whether an answer is being generated."""
        self.tokenizer = backend.model.tokenizer
        self.vocab_size = backend.model.vocab_size
        limit = backend.model.positions
        self.positions: int | None = limit.count if limit else None
        """Positions of the model, if it has a limit."""
        self._dialogue = Dialogue(template, self.tokenizer, system)
        self._stop_ids = stop_ids(template, self.tokenizer) | backend.model.end_ids
        self._transcript = _Transcript(backend)
        self._stopping = False
        for what, ids in (
            (f"a question in template {template.name}", self._dialogue.first_turn("u")),
            ("the set of stop ids", sorted(self._stop_ids)),
        ):
            check_rows(ids, self.vocab_size, self.tokenizer, what)

    @property
    def system(self) -> str | None:
        """The system text."""
        return self._dialogue.system

    @property
    def length(self) -> int:
        """The number of ids in the conversation, the template's included."""
        return len(self._transcript.ids)

    @property
    def rewritten(self) -> bool:
        """Whether the model's own template would write this conversation's past differently."""
        return self._dialogue.rewrites_history

    def set_system(self, system: str | None) -> None:
        """Starts a new conversation with another system text.

        Raises:
            UsageError: The template cannot carry one.
        """
        if system is not None and not self.template.carries_system:
            raise UsageError(
                f"the template {self.template.name} cannot carry a system text; choose another: "
                "--set template=NAME, with a name of `glitchrun list templates`"
            )
        self._dialogue = Dialogue(self.template, self.tokenizer, system)
        self.reset()

    def reset(self) -> None:
        """Starts a new conversation, and frees the KV cache."""
        self.turns = []
        self._transcript.clear()

    def stop(self) -> None:
        """Ends the current answer after its next token; may be called from a signal handler."""
        self._stopping = True

    def ask(self, user: str) -> Iterator[str]:
        """Asks a question, yields the answer's text as it arrives, and then adds a turn.

        A token named by its id (`<#31415>`) is put into the prompt by that id.

        Raises:
            UsageError: An id is outside the vocabulary, or the question does not fit into the
                model's positions.
        """
        asked = self._render(user)
        self._transcript.extend(asked)
        text = Detokenizer(self.tokenizer, self.template.stop)
        answer: list[int] = []
        parts: list[str] = []
        self.generating, self._stopping, ended = True, False, "stopped"
        try:
            for token_id, reason in self._sample(text):
                ended = reason or ended
                if token_id is not None:
                    answer.append(token_id)
                    self._transcript.extend([token_id])
                    parts.append(text.push(token_id))
                    yield parts[-1]
            parts.append(text.end())
        finally:
            self.generating = False
            self.turns.append(Turn(user, asked, "".join(parts), tuple(answer), ended, text.stopped))
        yield parts[-1]

    def _sample(self, text: Detokenizer) -> Iterator[tuple[int | None, str | None]]:
        """Yields each id of an answer, then None and what ended it."""
        key = rng_key(self.settings.seed, len(self.turns), "chat", 0)
        for position in range(self.settings.max_new_tokens):
            if self._stopping:
                yield None, "stopped"
                return
            if self.positions is not None and self.length >= self.positions:
                yield None, "context"
                return
            logits = self._transcript.logits()
            params = self.settings.params
            (token_id,), _ = choose_tokens(logits, [0], [key], [position], params, 0.0)
            if token_id in self._stop_ids:
                yield None, "end"
                return
            yield token_id, None
            if text.stopped:
                yield None, "end"
                return
        yield None, "length"

    def next_tokens(self, k: int, user: str | None = None) -> list[NextToken]:
        """Returns the `k` most likely next tokens.

        Args:
            k: Rows of the table.
            user: A question after which to look, without asking it; None for the conversation so
                far.

        Raises:
            UsageError: There is neither a conversation nor a question, or the question is invalid
                as in `ask`.
        """
        if user is not None:
            logits = self._transcript.logits_after(self._render(user))
        elif self.length:
            logits = self._transcript.logits()
        else:
            raise UsageError("nothing has been said yet; /next K TEXT looks ahead of a text")
        return _table(logits[0], k)

    def _render(self, user: str) -> tuple[int, ...]:
        """The ids that a question appends to the conversation."""
        for found in BY_ID.findall(user):
            if int(found) >= self.vocab_size:
                raise UsageError(
                    f"<#{found}> is outside this model's vocabulary of {self.vocab_size} entries"
                )
        if self.turns:
            ids = self._dialogue.next_turn(user, closed=self.turns[-1].closed)
        else:
            ids = self._dialogue.first_turn(user)
        if lacking := missing_rows(ids, self.vocab_size):
            raise UsageError(
                f"{', '.join(describe_token(one, self.tokenizer) for one in lacking)}: this "
                f"model's embedding has only {self.vocab_size} rows; leave that out"
            )
        if self.positions is not None and self.length + len(ids) >= self.positions:
            raise UsageError(
                f"the conversation has {self.length} ids, and {len(ids)} more leave no room in "
                f"the model's {self.positions} positions; /reset starts a new conversation"
            )
        return ids


def _table(logits: Tensor, k: int) -> list[NextToken]:
    p = logits.double().softmax(dim=-1)  # (V,)
    top = p.topk(min(k, len(p)))
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [NextToken(rank, token_id, value) for rank, (token_id, value) in enumerate(rows, 1)]


class _Transcript:
    """The ids of a conversation, and the cache of those that were run; each is run once."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.ids: list[int] = []
        self._cache: Any = None
        self._cached = 0
        self._logits: Tensor | None = None

    def extend(self, ids: Sequence[int]) -> None:
        """Appends ids, which are run when logits are next needed."""
        self.ids += ids

    def logits(self) -> Tensor:
        """Next-token logits `(1, V)` after the transcript."""
        if self._logits is None or self._cached < len(self.ids):
            pending = torch.tensor([self.ids[self._cached :]])
            # The cache is dropped during the pass: an interrupted pass leaves it in an undefined
            # state, and the whole transcript is run again.
            cache, self._cache, self._cached = self._cache, None, 0
            self._logits, self._cache = self.backend.step(pending, cache)
            self._cached = len(self.ids)
        return self._logits

    def logits_after(self, ids: Sequence[int]) -> Tensor:
        """Next-token logits `(1, V)` after the transcript and `ids`, which are not kept."""
        if not self.ids:
            return self.backend.step(torch.tensor([list(ids)]), None)[0]
        self.logits()
        copied = self.backend.select(self._cache, torch.tensor([0]))
        return self.backend.step(torch.tensor([list(ids)]), copied)[0]

    def clear(self) -> None:
        """Drops all ids and frees the cache."""
        self.ids = []
        self._cache, self._cached, self._logits = None, 0, None


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
