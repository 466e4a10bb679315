"""`predict`: the next tokens of a prompt, raw and in the chat format side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.plan.work import probe_positions, text_positions
from glitchrun.spec.strategy import Strategy, TextLength, Work, Workload, read_fragment
from glitchrun.strategies.prompt_lengths import PromptLengths

FORMATS = ("raw", "raw-space", "chat", "chat-space")
"""The text alone, or in the run's template; `-space`: followed by a space."""
USUAL = ("raw-usual", "chat-usual")
"""The same with tokens named by id (`<#31415>`) written as text, in the usual tokenization."""


@dataclass(frozen=True, slots=True)
class Config:
    prompts: tuple[Mapping[str, Any], ...]
    """Texts to continue: `text`, and optionally `name`, `chat` and `expected`."""
    formats: tuple[str, ...] = FORMATS
    """How each prompt is written; all by default, to show what the format changes."""
    top_k: int = 10
    """How many of the most likely next tokens are listed."""
    max_new_tokens: int | None = None
    """Tokens that the model generates greedily after each prompt; None for none."""


class Predict(Strategy):
    """Shows the next-token distribution of prompts, and the rank of an expected continuation."""

    config_type = Config
    fragment = read_fragment(Path(__file__).with_name("schema.json"))
    code = f"{__name__}.run:run"
    prompt_code = f"{__name__}.run:prompt_ids"
    version = 2  # 1 computed in the dtype of the weights where passes compute in float32
    example = """\
  - id: predict
    strategy: predict
    prompts:
      - text: The quick brown
        chat: "Complete this phrase: The quick brown"
        expected: fox"""
    figures = ("glitchrun.report.figures.next_token:draw_predictions",)

    def spreads(self, config: Config) -> bool:
        return True

    def steering(self, config: Config) -> frozenset[str]:
        return frozenset()

    def uses_seed(self, config: Config) -> bool:
        return False

    def limited(self, config: Config, most: int) -> dict[str, Any]:
        return {"prompts": list(config.prompts[:most])} if len(config.prompts) > most else {}

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        # One pass for the distribution. For each spelling of the expected text one for each further
        # token, of which there are no more than bytes, and one for a space.
        each = [1 + 2 * len(prompt.get("expected", "").encode()) for prompt in config.prompts]
        each = [one + (config.max_new_tokens or 0) for one in each]
        return Work(tokens=0, prompts=len(config.formats) * sum(each))

    def workloads(self, config: Config, step: str, system: int) -> Iterator[Workload]:
        texts = [
            max(prompt["text"], prompt.get("chat", ""), key=len) + prompt.get("expected", "")
            for prompt in config.prompts
        ]
        longest = probe_positions(("repeat",)) + max(map(text_positions, texts))
        # A pass for the prompts and what is expected after them, and one for each further token.
        passes = max(1, config.max_new_tokens or 0)
        texts_each = texts_of(config)
        yield Workload(step, 1, longest + system, texts=texts_each, text_passes=passes)

    def text_lengths(self, config: Config, prompts: PromptLengths) -> Iterator[TextLength]:
        yield from prompts.of_prompts(config.prompts, config.formats, config.max_new_tokens)


def texts_of(config: Config) -> tuple[int, ...]:
    """For each prompt, the most texts whose next tokens are read: in each format the prompt alone,
    and followed by either form of the expected text."""
    return tuple(
        len(config.formats) * (3 if "expected" in prompt else 1) for prompt in config.prompts
    )
