"""Runs `predict`: the next-token distribution of each prompt in each format."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from glitchrun.errors import RunError
from glitchrun.events import Batch, Entry, Event, Measured, Stage
from glitchrun.probing.sequence_scoring import (
    ScoredSequence,
    greedy_continuation,
    likeliest_sequence,
    log_probabilities,
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
from glitchrun.strategies.predict import FORMATS, USUAL, Config


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
    """Yields one batch a prompt, in the order in which they are given."""
    batches = list(history)
    names = prompt_names(config.prompts)
    stage = Stage("prompts", len(names), unit="prompts")
    context.announce(stage)
    places = range(len(batches), len(config.prompts))
    start = time.perf_counter()
    for facts in context.spread(predicted, ((config, place) for place in places)):
        seconds, done = time.perf_counter() - start, len(batches) + 1
        counters = {"prompts": len(config.formats)}
        batches.append(Batch(facts, done, stage.total, seconds, counters, stage=stage.name))
        yield batches[-1]
        start = time.perf_counter()
    yield from _metrics([entry for batch in batches for entry in batch.entries], len(batches))


def predicted(context: Context, asked: tuple[Config, int]) -> tuple[Entry, ...]:
    """The rows of all tables for one prompt, by its index. Any worker can compute them."""
    config, place = asked
    prompt, name = config.prompts[place], prompt_names(config.prompts)[place]
    return tuple(
        entry
        for case in cases(prompt, name, config.formats, context)
        for entry in _looked_at(case, prompt.get("expected"), config, context)
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


def _looked_at(
    case: Case, expected: str | None, config: Config, context: Context
) -> Iterator[Entry]:
    """The rows of all tables for one case."""
    backend = context.backend
    logits = backend.logits_alone(case.ids)
    found = None
    if expected is not None:
        forms = spellings(expected, backend.model.tokenizer)
        found = likeliest_sequence(backend, case.ids, forms, logits)
    log_p = log_probabilities(logits)
    best = log_p.topk(min(config.top_k, len(log_p)))
    text = context.vocabulary.text
    top = [(int(one), float(value.exp())) for value, one in zip(*best, strict=True)]
    entropy = float(-(log_p.exp() * log_p).sum())
    most = config.max_new_tokens
    said = _continued(case, logits, most, context) if most else None
    yield _answer(case, top[0], said, entropy, found, context)
    for place, (token_id, p) in enumerate(top, start=1):
        cells = {"case": case.name, "token": text(token_id), "place": place, "id": token_id, "p": p}
        yield Entry("top", {**cells, "expected": found is not None and token_id == found.ids[0]})
    cells = {"case": case.name, "text": case.text, "tokens": len(case.ids), "ids": list(case.ids)}
    yield Entry("prompts", cells)


def _continued(case: Case, logits: Tensor, most: int, context: Context) -> str:
    """The model's greedy continuation, to its end or for at most `most` tokens."""
    model = context.backend.model
    ends = stop_ids(context.template, model.tokenizer) | model.end_ids
    said = greedy_continuation(context.backend, case.ids, logits, most, ends)
    return "".join(decode_runs_inside(model.tokenizer, [said] if said else []))


def spellings(expected: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Ids of a continuation as it is written, and with one space more or less in front."""
    other = expected[1:] if expected.startswith(" ") else f" {expected}"
    found = [encode_inside(tokenizer, text) for text in (expected, other)]
    return [ids for ids in dict.fromkeys(found) if ids]


def _answer(
    case: Case,
    first: tuple[int, float],
    said: str | None,
    entropy: float,
    found: ScoredSequence | None,
    context: Context,
) -> Entry:
    tokenizer = context.backend.model.tokenizer
    pieces = decode_inside(tokenizer, found.ids) if found else None
    cells = {
        "case": case.name,
        "output": context.vocabulary.text(first[0]),
        "output_p": first[1],
        "continuation": said,
        "expected": "".join(pieces) if pieces else None,
        "rank": found.ranks[0] if found else None,
        "p": found.first_p if found else None,
        "pieces": pieces,
        "ranks": list(found.ranks) if found else None,
        "sequence_p": found.p if found else None,
        "logprob": found.log_p if found else None,
        "entropy": entropy,
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
