"""Runs `classify`: asks the questions with each token and its controls, and judges the answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.behaviour.catalogue import ALL_QUESTIONS, TESTS, BehaviourTest, chosen_tests
from glitchrun.behaviour.detectors import Judgement
from glitchrun.behaviour.significance import (
    ALPHA,
    Proportion,
    adjusted,
    difference,
    fisher_more,
    wilson,
)
from glitchrun.events import Batch, Entry, Event, Measured, Stage, Token
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.prompts.render import Prompt, intact, render
from glitchrun.prompts.template import stop_ids
from glitchrun.spec.probes import TOKEN, Probe
from glitchrun.strategies.classify import Config
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import draw
from glitchrun.terminal import shortened

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


_EXCERPT = 160
"""Code points of an answer that are kept."""


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """A sampled answer, and a test's judgement on it."""

    text: str
    judgement: Judgement


Judged = dict[tuple[int, str, str], list[JudgedAnswer]]
"""Answers by token, test and scenario."""


def category_row(token: Token, reason: str) -> Entry:
    """The tokenizer category of one token, and the reason."""
    cells = {"token_id": token.id, "token": token.text, "category": token.category}
    return Entry("categories", {**cells, "reason": reason})


def class_row(
    token: Token,
    test: BehaviourTest,
    own: Sequence[JudgedAnswer],
    controls: Sequence[Sequence[JudgedAnswer]],
    confidence: float,
) -> Entry:
    """The rate at which one token shows a class, compared with that of its controls."""
    rate, decided = _rate(own, confidence)
    control, control_decided = _rate([one for some in controls for one in some], confidence)
    apart = difference(rate, control) if rate and control else None
    cells = {
        "class": test.name,
        "token": token.text,
        "token_id": token.id,
        "flagged": None if apart is None else apart.low > 0,
        "decided": decided,
        **_bounds("rate", rate),
        "controls": len(controls),
        "control_decided": control_decided,
        **_bounds("control", control),
        **_bounds("difference", apart),
    }
    return Entry("classes", cells)


def answer_row(
    token: Token, control_of: Token | None, test: BehaviourTest, answers: Sequence[JudgedAnswer]
) -> Entry:
    """One token's answers to a test, with the first that shows the class, or else the first."""
    shown = next((one for one in answers if one.judgement.found), answers[0])
    found = [one.judgement.found for one in answers]
    cells = {
        "class": test.name,
        "token": token.text,
        "token_id": token.id,
        "control_of": None if control_of is None else control_of.id,
        "scenario": test.scenario,
        "attempts": len(answers),
        "found": found.count(True),
        "undecided": found.count(None),
        "seen": shown.judgement.reason,
        "answer": shortened(shown.text, _EXCERPT),
    }
    return Entry("answers", cells)


def class_metrics(batches: Sequence[Batch]) -> Iterator[Measured]:
    """The metrics of a step, headline first."""
    entries = [entry for batch in batches for entry in batch.entries]
    categories = [entry.cells for entry in entries if entry.table == "categories"]
    classes = [entry.cells for entry in entries if entry.table == "classes"]
    answers = [entry.cells for entry in entries if entry.table == "answers"]
    compared = [row for row in classes if row["flagged"] is not None]
    flagged = [row for row in compared if row["flagged"]]
    n = len(categories)
    yield Measured("flagged", len({row["token_id"] for row in flagged}), n)
    yield Measured("classified", n, n)
    yield Measured("not_normal", sum(row["category"] != "normal" for row in categories), n)
    yield Measured("pairs_flagged", len(flagged), len(compared))
    yield Measured("pairs", len(classes), len(classes))
    yield Measured("pairs_compared", len(compared), len(classes))
    yield Measured("pairs_shown", _shown(compared), len(compared))
    for name in TESTS:
        rows = [row for row in compared if row["class"] == name]
        value = sum(row["flagged"] for row in rows) if rows else None
        yield Measured(f"flagged_{name.replace('-', '_')}", value, len(rows))
    judged = sum(row["attempts"] for row in answers)
    yield Measured("undecided", sum(row["undecided"] for row in answers), judged)
    yield from _work(batches, n)


def _shown(compared: Sequence[Mapping[str, Any]]) -> int | None:
    """The pairs whose one-sided exact Fisher test, adjusted by Benjamini and Hochberg over all
    pairs compared, is at most `ALPHA`; None without pairs."""
    ps = [
        fisher_more(
            round(row["rate"] * row["decided"]),
            row["decided"],
            round(row["control"] * row["control_decided"]),
            row["control_decided"],
        )
        for row in compared
    ]
    return sum(p <= ALPHA for p in adjusted(ps)) if ps else None


def _work(batches: Sequence[Batch], n: int) -> Iterator[Measured]:
    total = {
        name: sum(batch.counters.get(name, 0) for batch in batches)
        for name in ("controls", "continuations", "resampled", "not_intact")
    }
    seconds = sum(batch.seconds for batch in batches)
    yield Measured("controls", total["controls"], n)
    yield Measured("answers", total["continuations"], n)
    rate = total["continuations"] / seconds if seconds and total["continuations"] else None
    yield Measured("answers_per_second", rate, total["continuations"])
    yield Measured("resampled", total["resampled"], total["continuations"])
    yield Measured("not_intact", total["not_intact"], n)


def _rate(answers: Sequence[JudgedAnswer], confidence: float) -> tuple[Proportion | None, int]:
    """The share of decided answers that show a class, None where none is decided; their number."""
    decided = [one.judgement.found for one in answers if one.judgement.found is not None]
    if not decided:
        return None, 0
    return wilson(sum(decided), len(decided), confidence), len(decided)


def _bounds(name: str, rate: Proportion | None) -> dict[str, float | None]:
    low, high = f"{name}_low", f"{name}_high"
    if rate is None:
        return {name: None, low: None, high: None}
    return {name: rate.value, low: rate.low, high: rate.high}
