"""A conversation: turns, what ended them, and the next-token table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from glitchrun.chat.stream import Stream
from glitchrun.chat.transcript import Transcript
from glitchrun.errors import UsageError
from glitchrun.probing.backend import Backend
from glitchrun.probing.token_choice import SamplingParams, choose_tokens, rng_key
from glitchrun.prompts.dialogue import Dialogue
from glitchrun.prompts.rows import check_rows, describe_token, missing_rows
from glitchrun.prompts.template import Template, stop_ids
from glitchrun.spec.token_ids import BY_ID


@dataclass(frozen=True, slots=True)
class Settings:
    """How answers are drawn. The same seed and the same turns give the same answers."""

    params: SamplingParams
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    user: str
    asked_ids: tuple[int, ...]
    """What was appended for the question: the close of the answer before, and the user turn."""
    answer: str
    answer_ids: tuple[int, ...]
    """Without the id that ended it."""
    ended: str
    """end: the model ended it; length: max_new_tokens; context: the model's positions are used up;
    stopped: by the user."""
    closed: bool = False
    """Whether the answer's ids hold the template's closing text."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the next-token table."""

    rank: int
    token_id: int
    p: float
    """Probability, before temperature and nucleus."""


class Session:
    """Talks with one loaded model; keeps keys and values between turns, nothing after a reset.

    Raises PreflightError where the template writes ids that the model's embedding has no row for.
    """

    def __init__(
        self, backend: Backend, template: Template, settings: Settings, system: str | None = None
    ) -> None:
        self.template = template
        self.settings = settings
        self.turns: list[Turn] = []
        self.generating = False
        self.tokenizer = backend.model.tokenizer
        self.vocab_size = backend.model.vocab_size
        limit = backend.model.positions
        self.positions: int | None = limit.count if limit else None
        self._dialogue = Dialogue(template, self.tokenizer, system)
        self._ends = stop_ids(template, self.tokenizer) | backend.model.end_ids
        self._transcript = Transcript(backend)
        self._stopping = False
        for what, ids in (
            (f"a question in template {template.name}", self._dialogue.open("u")),
            ("the set of stop ids", sorted(self._ends)),
        ):
            check_rows(ids, self.vocab_size, self.tokenizer, what)

    @property
    def system(self) -> str | None:
        return self._dialogue.system

    @property
    def length(self) -> int:
        """Ids said so far, the template's included."""
        return len(self._transcript.ids)

    @property
    def rewritten(self) -> bool:
        """Whether the model's own template would write this conversation's past differently."""
        return self._dialogue.rewritten

    def begin_with(self, system: str | None) -> None:
        """Starts a new conversation with another system text.

        Raises UsageError where the template carries none.
        """
        if system is not None and not self.template.carries_system:
            raise UsageError(
                f"the template {self.template.name} cannot carry a system text; choose another: "
                "--set template=NAME, with a name of `glitchrun list templates`"
            )
        self._dialogue = Dialogue(self.template, self.tokenizer, system)
        self.reset()

    def reset(self) -> None:
        """Forgets every turn, and frees their keys and values."""
        self.turns = []
        self._transcript.clear()

    def stop(self) -> None:
        """Ends the answer in hand after its next token; called from a signal handler."""
        self._stopping = True

    def ask(self, user: str) -> Iterator[str]:
        """Puts a question; yields the answer's text as it comes, and adds a turn at its end.

        A token named by its id (`<#31415>`) is put into the prompt by that id. Raises UsageError
        for an id outside the vocabulary and where the model's positions do not hold the question.
        """
        asked = self._written(user)
        self._transcript.extend(asked)
        text = Stream(self.tokenizer, self.template.stop)
        answer: list[int] = []
        parts: list[str] = []
        self.generating, self._stopping, ended = True, False, "stopped"
        try:
            for token_id, why in self._sampled(text):
                ended = why or ended
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

    def _sampled(self, text: Stream) -> Iterator[tuple[int | None, str | None]]:
        """Each id of an answer, then None with what ended it."""
        key = rng_key(self.settings.seed, len(self.turns), "chat", 0)
        for position in range(self.settings.max_new_tokens):
            if self._stopping:
                yield None, "stopped"
                return
            if self.positions is not None and self.length >= self.positions:
                yield None, "context"
                return
            logits = self._transcript.logits()
            (token_id,), _ = choose_tokens(logits, [0], [key], position, self.settings.params, 0.0)
            if token_id in self._ends:
                yield None, "end"
                return
            yield token_id, None
            if text.stopped:
                yield None, "end"
                return
        yield None, "length"

    def next_tokens(self, k: int, user: str | None = None) -> list[Candidate]:
        """The `k` most likely next ids: of the conversation as it stands, or, where `user` is
        given, of the answer to it, without asking it."""
        if user is not None:
            logits = self._transcript.logits_after(self._written(user))
        elif self.length:
            logits = self._transcript.logits()
        else:
            raise UsageError("nothing has been said yet; /next K TEXT looks ahead of a text")
        return _table(logits[0], k)

    def _written(self, user: str) -> tuple[int, ...]:
        for found in BY_ID.findall(user):
            if int(found) >= self.vocab_size:
                raise UsageError(
                    f"<#{found}> is outside this model's vocabulary of {self.vocab_size} entries"
                )
        if self.turns:
            ids = self._dialogue.go_on(user, closed=self.turns[-1].closed)
        else:
            ids = self._dialogue.open(user)
        if lacking := missing_rows(ids, self.vocab_size):
            raise UsageError(
                f"{', '.join(describe_token(one, self.tokenizer) for one in lacking)}: this "
                f"model's embedding has only {self.vocab_size} rows; leave that out"
            )
        if self.positions is not None and self.length + len(ids) >= self.positions:
            raise UsageError(
                f"the conversation has {self.length} ids, and {len(ids)} more leave no room in "
                f"the model's {self.positions} positions; /reset begins a new one"
            )
        return ids


def _table(logits: Tensor, k: int) -> list[Candidate]:
    p = logits.double().softmax(dim=-1)
    top = p.topk(min(k, len(p)))
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [Candidate(rank, token_id, value) for rank, (token_id, value) in enumerate(rows, 1)]
