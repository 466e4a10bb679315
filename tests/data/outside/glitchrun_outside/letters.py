"""A strategy that counts letters: one row for each token given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glitchrun.events import Batch, Entry, Event, Measured
from glitchrun.plan.work import named_tokens
from glitchrun.spec.strategy import Strategy, Work


@dataclass(frozen=True)
class Config:
    """The parameters of a step."""

    tokens: Mapping[str, Any]
    upper: bool = False
    """Whether only upper-case letters count."""


FRAGMENT = {
    "description": "Counts the letters of tokens.",
    "properties": {
        "tokens": {"description": "Which tokens.", "$ref": "#/$defs/tokenSource"},
        "upper": {
            "description": "Whether only upper-case letters count.",
            "type": "boolean",
            "default": False,
        },
    },
    "required": ["tokens"],
    "x-metrics": {"letters": {"description": "Letters of all tokens.", "unit": "letters"}},
    "x-tables": {
        "letters": {
            "title": "Letters",
            "description": "One row for each token.",
            "columns": {
                "token": {"description": "Its text.", "kind": "token"},
                "letters": {"description": "How many letters it has."},
            },
        }
    },
    "x-headline": {
        "metric": "letters",
        "unit": "letters",
        "sentence": "The tokens have {letters} letters.",
    },
}


class Letters(Strategy):
    """Counts the letters of tokens."""

    config_type = Config
    code = f"{__name__}:run"
    example = "  - {id: letters, strategy: letters, tokens: {ids: [1]}, upper: true}"
    figures = ("glitchrun_outside.bars:draw",)
    fragment = FRAGMENT

    def work(self, config: Config, earlier: Mapping[str, int | None], vocab: int) -> Work:
        return Work(tokens=named_tokens(config.tokens, earlier, vocab))


def run(config: Config, context: Any, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields one batch with all rows, and the number of letters."""
    batches = list(history)
    if not batches:
        tokens = context.tokens(config.tokens)
        rows = [{"token": one.text, "letters": _letters(one.text, config)} for one in tokens]
        batches.append(Batch(tuple(Entry("letters", row) for row in rows), len(rows), len(rows)))
        yield batches[0]
    counts = [entry.cells["letters"] for entry in batches[0].entries]
    yield Measured("letters", sum(counts), len(counts))


def _letters(text: str, config: Config) -> int:
    return sum(one.isalpha() and (one.isupper() or not config.upper) for one in text)


STRATEGY = Letters()
