"""Runs `predict`: the next-token distribution of each prompt in each format."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from glitchrun.errors import RunError
from glitchrun.events import Batch, Entry, Event, Measured, Stage
from glitchrun.plan.streaming import text_groups
from glitchrun.probing.sequence_scoring import (
    PromptReading,
    ScoredSequence,
    greedy_continuations,
    read_prompts,
)
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import render_text
from glitchrun.prompts.template import stop_ids
from glitchrun.prompts.tokenizer import (
    Tokenizer,
    decode_inside,
    decode_runs_inside,
    encode,
    encode_inside,
    marked,
    without_ids,
)
from glitchrun.strategies.context import Context
from glitchrun.strategies.predict import FORMATS, USUAL, Config, texts_of


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt in one format."""

    prompt: str
    """The prompt's name."""
    format: str
    text: str
    """The encoded text, without ids that were added in front of it."""
    ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """The prompt and its format: the column `case` of the tables."""
        return f"{self.prompt} · {self.format}"


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields a batch for each prompt in the order in which they are given; of a streamed model, for
    each group of prompts that share passes."""
    batches = list(history)
    stage = Stage("prompts", len(config.prompts), unit="prompts")
    context.announce(stage)
    done = batches[-1].done if batches else 0
    # A resident model runs every text alone, so each prompt is a group of its own.
    rows = context.backend.pass_rows or 1
    groups = text_groups(texts_of(config), rows, done)
    start = time.perf_counter()
    found = context.spread(predicted, ((config, group) for group in groups))
    for group, facts in zip(groups, found, strict=True):
        seconds, done = time.perf_counter() - start, group.stop
        counters = {"prompts": len(group) * len(config.formats)}
        batches.append(Batch(facts, done, stage.total, seconds, counters, stage=stage.name))
        yield batches[-1]
        start = time.perf_counter()
    yield from _metrics([entry for batch in batches for entry in batch.entries], done)


def predicted(context: Context, asked: tuple[Config, range]) -> tuple[Entry, ...]:
    """The rows of all tables for some prompts, by their indices. Any worker can compute them."""
    config, places = asked
    names = prompt_names(config.prompts)
    tokenizer = context.backend.model.tokenizer
    found: list[Case] = []
    forms: list[list[tuple[int, ...]]] = []
    for place in places:
        expected = config.prompts[place].get("expected")
        own = cases(config.prompts[place], names[place], config.formats, context)
        found += own
        forms += len(own) * [[] if expected is None else spellings(expected, tokenizer)]
    ids = [case.ids for case in found]
    readings = read_prompts(context.backend, [*zip(ids, forms, strict=True)], config.top_k)
    said = _continued(ids, readings, config.max_new_tokens, context)
    return tuple(
        entry
        for case, reading, text in zip(found, readings, said, strict=True)
        for entry in _rows(case, reading, text, context)
    )


def prompt_ids(config: Config, context: Context) -> Iterator[tuple[str, Sequence[int]]]:
    """The ids of every prompt in every format, and of the expected texts."""
    yield from rendered_prompt_ids(config.prompts, config.formats, context)


def rendered_prompt_ids(
    prompts: Sequence[Mapping[str, Any]], formats: Sequence[str], context: Context
) -> Iterator[tuple[str, Sequence[int]]]:
    """Descriptions and ids of prompts in `formats` and of spellings of their expected texts."""
    for prompt, name in zip(prompts, prompt_names(prompts), strict=True):
        for case in cases(prompt, name, formats, context):
            yield f"prompt «{name}» in the format {case.format}", case.ids
        if prompt.get("expected") is not None:
            forms = spellings(prompt["expected"], context.backend.model.tokenizer)
            yield f"the expected text of prompt «{name}»", [one for ids in forms for one in ids]


def cases(
    prompt: Mapping[str, Any], name: str, formats: Sequence[str], context: Context
) -> list[Case]:
    """A prompt in each of the formats.

    Raises:
        PreflightError: the run's template refuses it.
        RunError: the prompt has no token in one of the formats.
    """
    return [_case(prompt, name, form, context) for form in formats]


def _case(prompt: Mapping[str, Any], name: str, form: str, context: Context) -> Case:
    model = context.backend.model
    kind, _, variant = form.partition("-")
    for said in (prompt["text"], prompt.get("chat", "")):
        context.tokens({"ids": marked(said).ids})  # or an error
    if variant == "usual":
        prompt = {
            key: _usual(prompt[key], name, context) for key in ("text", "chat") if key in prompt
        }
    prefill = " " if variant == "space" else ""
    if kind == "chat":
        user = prompt.get("chat", prompt["text"])
        system = context.spec.system
        text, ids = render_text(context.template, user, model.tokenizer, system, prefill)
    else:
        raw = detect("raw", model.tokenizer, model.config, context.spec.model.path)
        text, ids = render_text(raw, prompt["text"], model.tokenizer, prefill=prefill)
    if not ids:
        raise RunError(f"prompts: {name!r} has no token in the format {form}; give it a text")
    return Case(name, form, text, ids)


def _usual(text: str, name: str, context: Context) -> str:
    """A text without tokens named by id: the tokenizer encodes it as usual."""
    read = without_ids(text, context.backend.model.tokenizer)
    if "\ufffd" in read and "\ufffd" not in text:
        raise RunError(
            f"prompts: the tokens of {name!r} are no whole characters, so they have no usual "
            "tokenization; leave out the formats raw-usual and chat-usual"
        )
    return read


def prompt_names(prompts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each prompt's name, or else its text, with a number if it occurs more than once."""
    names: list[str] = []
    for prompt in prompts:
        name = given = prompt.get("name", prompt["text"])
        while name in names:
            name = f"{given} ({1 + sum(other.startswith(given) for other in names)})"
        names.append(name)
    return names


def _rows(
    case: Case, reading: PromptReading, said: str | None, context: Context
) -> Iterator[Entry]:
    """The rows of all tables for one case."""
    found, text = reading.sequence, context.vocabulary.text
    yield _answer(case, reading, said, context)
    for place, (token_id, p) in enumerate(reading.top, start=1):
        cells = {"case": case.name, "token": text(token_id), "place": place, "id": token_id, "p": p}
        yield Entry("top", {**cells, "expected": found is not None and token_id == found.ids[0]})
    cells = {"case": case.name, "text": case.text, "tokens": len(case.ids), "ids": list(case.ids)}
    yield Entry("prompts", cells)


def _continued(
    prompts: Sequence[Sequence[int]],
    readings: Sequence[PromptReading],
    most: int | None,
    context: Context,
) -> list[str | None]:
    """The model's greedy continuations, to their ends or for at most `most` tokens."""
    if not most:
        return [None] * len(prompts)
    model, first = context.backend.model, [one.argmax for one in readings]
    ends = stop_ids(context.template, model.tokenizer) | model.end_ids
    said = greedy_continuations(context.backend, prompts, first, most, ends)
    return ["".join(decode_runs_inside(model.tokenizer, [ids] if ids else [])) for ids in said]


def spellings(expected: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Ids of a continuation as it is written, and with one space more or less in front."""
    other = expected[1:] if expected.startswith(" ") else f" {expected}"
    found = [encode_inside(tokenizer, text) for text in (expected, other)]
    return [ids for ids in dict.fromkeys(found) if ids]


def _answer(case: Case, reading: PromptReading, said: str | None, context: Context) -> Entry:
    tokenizer, found = context.backend.model.tokenizer, reading.sequence
    first, first_p = reading.top[0]
    pieces = decode_inside(tokenizer, found.ids) if found else None
    cells = {
        "case": case.name,
        "output": context.vocabulary.text(first),
        "output_p": first_p,
        "continuation": said,
        "expected": "".join(pieces) if pieces else None,
        "rank": found.ranks[0] if found else None,
        "p": found.first_p if found else None,
        "pieces": pieces,
        "ranks": list(found.ranks) if found else None,
        "sequence_p": found.p if found else None,
        "logprob": found.log_p if found else None,
        "entropy": reading.entropy,
        "intact": is_intact(case, found, tokenizer) if found else None,
        "prompt": case.prompt,
        "format": case.format,
    }
    return Entry("predictions", cells)


def is_intact(case: Case, found: ScoredSequence, tokenizer: Tokenizer) -> bool:
    """Whether prompt and continuation, encoded as one text, have the ids that were measured."""
    text = case.text + "".join(decode_inside(tokenizer, found.ids))
    ids = encode(tokenizer, text)
    return (*case.ids, *found.ids)[-len(ids) :] == ids


def _metrics(entries: Sequence[Entry], prompts: int) -> Iterator[Measured]:
    """Means over the prompts that name an expected continuation, by format."""
    rows = [entry.cells for entry in entries if entry.table == "predictions"]
    measured = [row for row in rows if row["logprob"] is not None]
    log_p = {(row["prompt"], row["format"]): row["logprob"] for row in measured}
    gained = _gains(log_p, "raw", "chat")
    yield Measured("improvement", _mean(gained), len(gained))
    yield Measured("improved", sum(gain > 0 for gain in gained), len(gained))
    spaced = _gains(log_p, "chat", "chat-space")
    yield Measured("space_gain", _mean(spaced), len(spaced))
    usual = [gain for kind in ("raw", "chat") for gain in _gains(log_p, f"{kind}-usual", kind)]
    yield Measured("usual_gain", _mean(usual), len(usual))
    for form in (*FORMATS, *USUAL):
        own = [row for row in measured if row["format"] == form]
        name = form.replace("-", "_")
        yield Measured(f"{name}_rank", _mean([row["rank"] for row in own]), len(own))
        yield Measured(f"{name}_logprob", _mean([row["logprob"] for row in own]), len(own))
        yield Measured(f"{name}_hits", sum(row["rank"] == 1 for row in own), len(own))
    yield Measured("prompts", prompts, prompts)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _gains(log_p: Mapping[tuple[str, str], float], before: str, after: str) -> list[float]:
    """Gains in log-probability (nats) from format `before` to format `after`, one per prompt."""
    return [
        log_p[name, after] - value
        for (name, form), value in log_p.items()
        if form == before and (name, after) in log_p
    ]
