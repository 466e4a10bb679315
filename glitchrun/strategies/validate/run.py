"""Runs `validate`: samples attempts on each token, and estimates its ASR with its interval."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from glitchrun.events import Batch, Event, Sampled, Stage, Token
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.prompts.render import Prompt, as_sent, intact
from glitchrun.prompts.template import stop_ids
from glitchrun.strategies import phrases
from glitchrun.strategies.context import Context
from glitchrun.strategies.false_alarms import (
    as_controls,
    control_stage,
    controls_done,
    draw,
    draw_elsewhere,
    elsewhere_done,
)
from glitchrun.strategies.validate import Config
from glitchrun.strategies.validate.attempts import are_known, attempts, estimate, stopping
from glitchrun.strategies.validate.pacing import Pace

_Chunk = tuple[Config, int, Sequence[Token], Mapping[int, Sampled]]
"""Tokens with the attempts known on them, the step's Config, and the rows of a pass."""
_WORK = "continuations"
"""The counter whose rate is shown."""


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields the attempts on a few tokens, or phrases, at a time, in the order in which they are
    named."""
    if phrases.takes_phrases(config, context):
        yield from phrases.sampled(config, context, history)
        return
    tokens = context.tokens(config.tokens)
    sampler = new_sampler(config, context, context.prompts(config.probes))
    context.tools[_key(config, sampler.rows)] = sampler
    pace = _pace(config, context, sampler, history)
    batches = list(history)
    stage = Stage("sampling", len(tokens), work=_WORK)
    done = sum(len(batch.token_facts) for batch in history)
    for batch in _sampled_in_order(config, context, sampler, tokens, done, stage, pace):
        batches.append(batch)
        yield batch
    yield from _sampled_controls(config, context, sampler, tokens, batches, pace)


def _sampled_in_order(
    config: Config,
    context: Context,
    sampler: Sampler,
    tokens: Sequence[Token],
    done: int,
    stage: Stage,
    pace: Pace,
) -> Iterator[Batch]:
    """Samples the tokens of a stage, without the first `done`."""
    context.announce(stage)
    start = time.perf_counter()
    asked = _chunks(config, context, sampler.rows, tokens[done:], pace)
    for facts, counters, spent in context.spread(sampled, asked):
        done += len(facts)
        pace.measure(len(facts) - counters.get("reused_tokens", 0), spent)
        prompts = _as_sent(context, sampler) if done == len(tokens) else {}
        seconds = time.perf_counter() - start
        yield Batch(facts, done, stage.total, seconds, counters, stage=stage.name, prompts=prompts)
        start = time.perf_counter()


def _chunks(
    config: Config, context: Context, rows: int, tokens: Sequence[Token], pace: Pace
) -> Iterator[_Chunk]:
    """The tokens in parts that a worker samples together, with the attempts known on them."""
    while tokens:
        chunk = _next_tokens(tokens, config, context, pace)
        tokens = tokens[len(chunk) :]
        known = {one.id: context.known[one.id] for one in chunk if one.id in context.known}
        yield config, rows, chunk, known


def _as_sent(context: Context, sampler: Sampler) -> dict[str, tuple[str, ...]]:
    tokenizer = context.backend.model.tokenizer
    return {name: as_sent(prompt, tokenizer) for name, prompt in sampler.prompts.items()}


def _next_tokens(
    tokens: Sequence[Token], config: Config, context: Context, pace: Pace
) -> Sequence[Token]:
    """The tokens of the next batch. The pace counts those that need attempts not known yet."""
    threshold = context.spec.thresholds.asr
    size = min(pace.size, math.ceil(len(tokens) / context.workers.size))
    end = unknown = 0
    for token in tokens[: pace.most]:
        unknown += not are_known(config, context.known.get(token.id), threshold)
        if unknown > size:
            break
        end += 1
    return tokens[:end]


def _paced(batch: Batch) -> tuple[int, float]:
    """How many tokens of a batch were sampled for it, and its seconds."""
    return len(batch.facts) - batch.counters.get("reused_tokens", 0), batch.seconds


def _pace(config: Config, context: Context, sampler: Sampler, history: Sequence[Batch]) -> Pace:
    """The sizes of batches, whose attempts of a round are sampled side by side."""
    rule = stopping(config, context.spec.thresholds.asr)
    most = sampler.rows // (rule.needed(0, 0) if rule else config.repeats)
    whole = context.backend.pass_rows is not None
    return Pace(most, [_paced(batch) for batch in history], whole=whole)


def _sampled_controls(
    config: Config,
    context: Context,
    sampler: Sampler,
    tokens: Sequence[Token],
    history: Sequence[Batch],
    pace: Pace,
) -> Iterator[Batch]:
    if not config.controls:
        return
    history = list(history)  # the caller's grows with what is yielded
    matches = draw(context, [token.id for token in tokens], config.controls, history)
    done = controls_done(history)
    for elsewhere in (False, True):
        if elsewhere:
            done, matches = elsewhere_done(history), draw_elsewhere(context, history)
        if not matches:
            continue
        stage = control_stage(len(matches), elsewhere=elsewhere, work=_WORK)
        controls = [context.vocabulary.token(match.token_id) for match in matches]
        for batch in _sampled_in_order(config, context, sampler, controls, done, stage, pace):
            size = len(batch.facts)
            made = as_controls(batch, matches[done : done + size], elsewhere=elsewhere)
            done += size
            history.append(made)
            yield made


def new_sampler(
    config: Config,
    context: Context,
    prompts: Mapping[str, Prompt],
    rows: int | str | None = None,
) -> Sampler:
    """A sampler of attempts in the prompts, with the step's settings; `rows` replaces its
    `batch_size`."""
    model = context.backend.model
    rows = rows or config.batch_size
    if rows == "auto":
        longest = max(len(p.prefix_ids) + len(p.suffix_ids) + 1 for p in prompts.values())
        positions = longest + config.max_new_tokens
        rows = standard_rows(model, positions, context.free_bytes, sampling=True)
    return Sampler(
        context.backend,
        prompts,
        params=SamplingParams(config.temperature, config.top_p),
        max_new_tokens=config.max_new_tokens,
        rows=int(rows),
        seed=context.spec.seed,
        decode=model.tokenizer.decode,
        stop_ids=stop_ids(context.template, model.tokenizer) | model.end_ids,
        stop_text=context.template.stop,
        match=config.match,
    )


def _key(config: Config, rows: int) -> tuple[str, str, int]:
    return "sampler", repr(config), rows


def sampled(context: Context, asked: _Chunk) -> tuple[tuple[Sampled, ...], dict[str, int], float]:
    """Attempts on some tokens, what they took, and the seconds. Any worker can sample them."""
    start = time.perf_counter()
    config, rows, tokens, known = asked
    sampler = context.tool(
        _key(config, rows),
        lambda: new_sampler(config, context, context.prompts(config.probes), rows),
    )
    threshold = context.spec.thresholds.asr
    made, reused, complete = attempts(
        config, tokens, known, sampler.attempt, order=tuple(sampler.prompts), threshold=threshold
    )
    ids = [token.id for token in tokens]
    tokenizer = context.backend.model.tokenizer
    kept = [intact(prompt, ids, tokenizer) for prompt in sampler.prompts.values()]
    facts = tuple(
        replace(
            estimate(token, failed, threshold, all(column[row] for column in kept)),
            continuations=said,
        )
        for row, (token, (failed, said)) in enumerate(zip(tokens, made, strict=True))
    )
    counters = dict(sampler.counters)
    sampler.counters.clear()
    if config.sequential:  # continuations of different rounds are not compared
        counters.pop("distinct", None)
    taken = {"reused_attempts": reused, "reused_tokens": complete}
    counters |= {name: count for name, count in taken.items() if count}
    counters["not_intact"] = sum(not fact.intact for fact in facts)
    if lacking := sum(prompt.dropped_system is not None for prompt in sampler.prompts.values()):
        counters["dropped_system"] = lacking * len(tokens)
    return facts, counters, time.perf_counter() - start
