"""`classify`: tokenizer categories, and behavioural classes against matched controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glitchrun.plan.work import (
    expected_tokens,
    named_tokens,
    only_if_found,
    probe_positions,
    sampling,
    usual_length,
)
from glitchrun.spec.nodes import Document, Path_
from glitchrun.spec.problems import Problem
from glitchrun.spec.strategy import (
    Expectation,
    Strategy,
    TextLength,
    Work,
    Workload,
    read_fragment,
)
from glitchrun.strategies.prompt_lengths import PromptLengths

_ANSWER = 60
"""Mean tokens assumed for an answer that is not cut off: a paragraph."""


@dataclass(frozen=True, slots=True)
class Config:
    tokens: Mapping[str, Any]
    """Which tokens: `ids`, `texts`, `file`, or `from` an earlier step."""
    tests: str | tuple[str, ...] = "all"
    """Behavioural classes to test for; empty for tokenizer categories alone."""
    controls: int = 4
    """Matched ordinary tokens that each token is compared with."""
    attempts: int = 5
    """Sampled answers to each question, for each token and control."""
    max_new_tokens: int = 80
    """Length of each answer, in tokens: a short paragraph."""
    temperature: float = 0.7
    """Sampling temperature; 0 for greedy."""
    top_p: float = 0.9
    """Nucleus: the smallest set of tokens with this share of probability."""
    confidence: float = 0.95
    """Confidence of the intervals by which a class is flagged."""
    batch_size: int | str = "auto"
    """Answers sampled side by side."""
    scenarios: str | tuple[str, ...] | None = None
    """Further settings in which the tests ask, as TEST/SCENARIO; None for none."""

    @property
    def repeats(self) -> int:
        """Attempts made: greedy ones are all the same."""
        return self.attempts if self.temperature else 1


class Classify(Strategy):
    """Names tokenizer categories with their reasons, and tests for behavioural classes."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("schema.json"))
    code = f"{__name__}.run:run"
    prompt_code = f"{__name__}.run:prompt_ids"
    example = (
        "  - {id: mine, strategy: mine, search: gradient, iterations: 50, batch_size: 8, k: 32}\n"
        "  - {id: classify, strategy: classify, tokens: {from: mine}}"
    )

    def problems(
        self, document: Document, index: int, step: Mapping[str, Any]
    ) -> Iterator[Problem]:
        """Reports scenarios of tests that the step does not run."""
        tests, scenarios = step.get("tests", "all"), step.get("scenarios")
        if not isinstance(tests, list) or not isinstance(scenarios, list):
            return
        for position, name in enumerate(scenarios):
            if isinstance(name, str) and name.split("/")[0] not in tests:
                message = f"{name!r} is a scenario of a test that `tests` does not contain"
                path: Path_ = ("steps", index, "scenarios", position)
                hint = f"add {name.split('/')[0]!r} to them"
                yield document.problem("GR313", path, message, hint)

    def needs_resident(self, params: Mapping[str, Any]) -> str | None:
        return "it would read the whole model for every token of an answer"

    def steering(self, config: Config) -> frozenset[str]:
        return frozenset()

    def limited(self, config: Config, most: int) -> dict[str, Any]:
        # Every token, control and attempt answers dozens of questions.
        fewer = {"controls": 1, "attempts": most}
        return {name: n for name, n in fewer.items() if getattr(config, name) > n}

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        named = named_tokens(config.tokens, earlier, vocab)
        most = self._asking(config, named, vocab, config.max_new_tokens)
        return replace(most, caveat=only_if_found(config.tokens, named))

    def likely_work(self, config: Config, bounds: Work, expected: Expectation) -> Work:
        named = expected_tokens(config.tokens, expected)
        length = usual_length(config.max_new_tokens, _ANSWER)
        return self._asking(config, named, expected.size, length)

    def _asking(self, config: Config, named: int, vocab: int, new_tokens: int) -> Work:
        """The work of asking every question about `named` tokens and their controls."""
        asked = min(named * (1 + config.controls), named + vocab) * config.repeats
        return sampling(named, asked, len(_questions(config)), new_tokens)

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        yield Workload(
            step,
            batch=config.batch_size if isinstance(config.batch_size, int) else None,
            positions=probe_positions("strict") + system + config.max_new_tokens,
            kind="answer",
            controls=bool(config.controls),
        )

    def text_lengths(self, config: Config, prompts: PromptLengths) -> Iterator[TextLength]:
        for user in _questions(config).values():
            length = prompts.of_question(user)
            yield TextLength("max_new_tokens", length, config.max_new_tokens - 1)


def _questions(config: Config) -> dict[str, str]:
    """The user text of each question that the step asks, by name."""
    # Imported here because `glitchrun validate` does not need the catalogue's regular expressions.
    from glitchrun.behaviour.catalogue import ALL_QUESTIONS, chosen_tests

    chosen = chosen_tests(config.tests, config.scenarios)
    names = [test.question for tests in chosen for test in tests]
    return {name: ALL_QUESTIONS[name].user for name in names}
