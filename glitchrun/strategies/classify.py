"""What tokens are by the tokenizer, and what a model does when one stands in its prompt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.behaviour.catalogue import QUESTIONS, TESTS
from glitchrun.behaviour.judging import BehaviourTest
from glitchrun.events import Batch, Event, Token
from glitchrun.probing.answers import Answers
from glitchrun.probing.choice import Sampling
from glitchrun.probing.memory import standard_rows
from glitchrun.prompts.probes import TOKEN, Probe
from glitchrun.prompts.render import Prompt, intact, render
from glitchrun.prompts.template import stop_ids
from glitchrun.strategies.classify_tables import (
    Answer,
    answer_row,
    category_row,
    class_metrics,
    class_row,
)
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import draw

_SPARE = 128
"""Positions left for a question when rows are sized."""


@dataclass(frozen=True, slots=True)
class Config:
    tokens: Mapping[str, Any]
    tests: str | tuple[str, ...] = "all"
    controls: int = 4
    attempts: int = 5
    max_new_tokens: int = 80
    temperature: float = 0.7
    top_p: float = 0.9
    confidence: float = 0.95
    batch_size: int | str = "auto"

    @property
    def chosen(self) -> tuple[BehaviourTest, ...]:
        names = TESTS if self.tests == "all" else self.tests
        return tuple(TESTS[name] for name in names)

    @property
    def repeats(self) -> int:
        """Attempts made: greedy ones are all the same."""
        return self.attempts if self.temperature else 1


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields tokens with their category, classes and answers, in the order they are named."""
    tokens = context.tokens(config.tokens)
    classifier = _Classifier(config, context, tokens)
    batches = list(history)
    done = history[-1].done if history else 0
    while done < len(tokens):
        chunk = tokens[done : done + classifier.at_once]
        done += len(chunk)
        batch = classifier.batch(chunk, (done, len(tokens)))
        batches.append(batch)
        yield batch
    yield from class_metrics(batches)


class _Classifier:
    """Puts the questions with a token and its controls in them, and judges the answers."""

    def __init__(self, config: Config, context: Context, tokens: Sequence[Token]) -> None:
        self._config = config
        self._context = context
        self._prompts = _prompts(config, context)
        self._controls: dict[int, list[Token]] = {token.id: [] for token in tokens}
        if self._prompts:
            for match in draw(context, list(self._controls), config.controls * len(tokens), []):
                self._controls[match.of].append(context.vocabulary.token(match.token_id))
        self._answers = _sampler(config, context)
        self.at_once = max(1, self._answers.rows // (config.repeats * (1 + config.controls)))
        """Tokens that become durable together."""

    def batch(self, tokens: Sequence[Token], progress: tuple[int, int]) -> Batch:
        """The rows of a few tokens: categories, classes and answers."""
        start = time.perf_counter()
        subjects = [one for token in tokens for one in (token, *self._controls[token.id])]
        judged = self._judged(subjects)
        rows = [category_row(token, self._context.vocabulary.reason(token.id)) for token in tokens]
        for token in tokens:
            controls = self._controls[token.id]
            for test in self._config.chosen:
                own = judged[token.id, test.name]
                others = [judged[control.id, test.name] for control in controls]
                rows.append(class_row(token, test, own, others, self._config.confidence))
                rows.append(answer_row(token, None, test, own))
                pairs = zip(controls, others, strict=True)
                rows += [answer_row(one, token, test, answers) for one, answers in pairs]
        counters = dict(self._answers.counters)
        self._answers.counters.clear()
        counters["not_intact"] = self._not_intact(tokens)
        counters["controls"] = len(subjects) - len(tokens)
        return Batch(tuple(rows), *progress, time.perf_counter() - start, counters)

    def _judged(self, subjects: Sequence[Token]) -> dict[tuple[int, str], list[Answer]]:
        """Every answer with its judgement, by token and test."""
        found: dict[tuple[int, str], list[Answer]] = {}
        for name, prompt in self._prompts.items():
            answers = self._answers.answers(prompt, subjects, self._config.repeats)
            tests = [test for test in self._config.chosen if test.question == name]
            for token, texts in zip(subjects, answers, strict=True):
                question = QUESTIONS[name].user.replace(TOKEN, token.text)
                for test in tests:
                    found[token.id, test.name] = [
                        Answer(text, test.judge(question, text, token.text)) for text in texts
                    ]
        return found

    def _not_intact(self, tokens: Sequence[Token]) -> int:
        """Tokens whose id would not survive encoding one of the questions."""
        ids = [token.id for token in tokens]
        tokenizer = self._context.backend.model.tokenizer
        kept = [intact(prompt, ids, tokenizer) for prompt in self._prompts.values()]
        return sum(not all(column[row] for column in kept) for row in range(len(ids)))


def _prompts(config: Config, context: Context) -> dict[str, Prompt]:
    names = dict.fromkeys(test.question for test in config.chosen)
    return {
        name: render(
            context.template,
            Probe(f"classify/{name}", QUESTIONS[name].user, prefill=""),
            context.backend.model.tokenizer,
            context.spec.system,
        )
        for name in names
    }


def _sampler(config: Config, context: Context) -> Answers:
    model = context.backend.model
    rows = config.batch_size
    if rows == "auto":
        rows = standard_rows(model, _SPARE + config.max_new_tokens, context.free_bytes)
    return Answers(
        context.backend,
        sampling=Sampling(config.temperature, config.top_p),
        max_new_tokens=config.max_new_tokens,
        rows=int(rows),
        seed=context.spec.seed,
        decode=model.tokenizer.decode,
        stop_ids=stop_ids(context.template, model.tokenizer) | model.end_ids,
        stop_text=context.template.stop,
    )
