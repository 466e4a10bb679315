"""Runs `classify`: asks the questions with each token and its controls, and judges the answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from glitchrun.behaviour.catalogue import ALL_QUESTIONS, chosen_tests
from glitchrun.events import Batch, Entry, Event, Stage, Token
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.prompts.render import Prompt, intact, render
from glitchrun.prompts.template import stop_ids
from glitchrun.spec.probes import TOKEN, Probe
from glitchrun.strategies.classify import Config
from glitchrun.strategies.classify.class_tables import (
    JudgedAnswer,
    answer_row,
    category_row,
    class_metrics,
    class_row,
)
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import draw

Judged = dict[tuple[int, str, str], list[JudgedAnswer]]
"""Answers by token, test and scenario."""
_SPARE = 128
"""Positions assumed for a question when the batch size is chosen."""


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields tokens with their category, classes and answers, in the order they are named."""
    tokens = context.tokens(config.tokens)
    stage = Stage("questions", len(tokens), work="continuations")
    context.announce(stage)
    classifier = _Classifier(config, context, tokens)
    batches = list(history)
    done = history[-1].done if history else 0
    while done < len(tokens):
        chunk = tokens[done : done + classifier.at_once]
        done += len(chunk)
        batch = classifier.batch(chunk, done, stage)
        batches.append(batch)
        yield batch
    yield from class_metrics(batches)


def prompt_ids(config: Config, context: Context) -> Iterator[tuple[str, Sequence[int]]]:
    """The prompts of its questions, without the token."""
    for name, prompt in _prompts(config, context).items():
        what = f"question {name} in template {context.template.name}"
        yield what, (*prompt.prefix_ids, *prompt.suffix_ids)


class _Classifier:
    """Asks the questions about a token and its controls, and judges the answers."""

    def __init__(self, config: Config, context: Context, tokens: Sequence[Token]) -> None:
        self._config = config
        self._chosen = chosen_tests(config.tests, config.scenarios)
        self._context = context
        self._prompts = _prompts(config, context)
        self._controls: dict[int, list[Token]] = {token.id: [] for token in tokens}
        if self._prompts:
            for match in draw(context, list(self._controls), config.controls * len(tokens), []):
                self._controls[match.of].append(context.vocabulary.token(match.token_id))
        self._answers = _sampler(config, context)
        self.at_once = max(1, self._answers.rows // (config.repeats * (1 + config.controls)))
        """Tokens per batch of the ledger."""

    def batch(self, tokens: Sequence[Token], done: int, stage: Stage) -> Batch:
        """The rows of a few tokens: categories, classes and answers."""
        start = time.perf_counter()
        subjects = [one for token in tokens for one in (token, *self._controls[token.id])]
        judged = self._judged(subjects)
        rows = [category_row(token, self._context.vocabulary.reason(token.id)) for token in tokens]
        for token in tokens:
            rows += self._rows(token, judged)
        counters = dict(self._answers.counters)
        self._answers.counters.clear()
        counters["not_intact"] = self._not_intact(tokens)
        counters["controls"] = len(subjects) - len(tokens)
        seconds = time.perf_counter() - start
        return Batch(tuple(rows), done, stage.total, seconds, counters, stage=stage.name)

    def _rows(self, token: Token, judged: Judged) -> Iterator[Entry]:
        """The rows of one token: each class, and the answers in each scenario."""
        subjects = (token, *self._controls[token.id])
        for scenarios in self._chosen:
            own, *others = (
                [
                    answer
                    for test in scenarios
                    for answer in judged[one.id, test.name, test.scenario]
                ]
                for one in subjects
            )
            yield class_row(token, scenarios[0], own, others, self._config.confidence)
            for test in scenarios:
                for place, one in enumerate(subjects):
                    answers = judged[one.id, test.name, test.scenario]
                    yield answer_row(one, token if place else None, test, answers)

    def _judged(self, subjects: Sequence[Token]) -> Judged:
        """Every answer with its judgement."""
        found: Judged = {}
        tests = [test for scenarios in self._chosen for test in scenarios]
        for name, prompt in self._prompts.items():
            answers = self._answers.answers(prompt, subjects, self._config.repeats)
            asking = [test for test in tests if test.question == name]
            for token, texts in zip(subjects, answers, strict=True):
                question = ALL_QUESTIONS[name].user.replace(TOKEN, token.text)
                for test in asking:
                    found[token.id, test.name, test.scenario] = [
                        JudgedAnswer(text, test.judge(question, text, token.text)) for text in texts
                    ]
        return found

    def _not_intact(self, tokens: Sequence[Token]) -> int:
        """Tokens whose id would not survive encoding one of the questions."""
        ids = [token.id for token in tokens]
        tokenizer = self._context.backend.model.tokenizer
        kept = [intact(prompt, ids, tokenizer) for prompt in self._prompts.values()]
        return sum(not all(column[row] for column in kept) for row in range(len(ids)))


def _prompts(config: Config, context: Context) -> dict[str, Prompt]:
    chosen = chosen_tests(config.tests, config.scenarios)
    names = dict.fromkeys(test.question for tests in chosen for test in tests)
    return {
        name: render(
            context.template,
            Probe(f"classify/{name}", ALL_QUESTIONS[name].user, prefill=""),
            context.backend.model.tokenizer,
            context.spec.system,
        )
        for name in names
    }


def _sampler(config: Config, context: Context) -> Sampler:
    model = context.backend.model
    rows = config.batch_size
    if rows == "auto":
        rows = standard_rows(model, _SPARE + config.max_new_tokens, context.free_bytes)
    return Sampler(
        context.backend,
        params=SamplingParams(config.temperature, config.top_p),
        max_new_tokens=config.max_new_tokens,
        rows=int(rows),
        seed=context.spec.seed,
        decode=model.tokenizer.decode,
        stop_ids=stop_ids(context.template, model.tokenizer) | model.end_ids,
        stop_text=context.template.stop,
        match="never",
    )
