"""Runs `validate`: samples attempts on each token, and estimates its ASR with its interval."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from glitchrun.events import Batch, Event, Stage, Token
from glitchrun.probing.memory_limits import standard_rows
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.prompts.render import Prompt, as_sent, intact
from glitchrun.prompts.template import stop_ids
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

_WORK = "continuations"
"""The counter whose rate is shown."""


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields the attempts on a few tokens at a time, in the order in which they are named."""
    tokens = context.tokens(config.tokens)
    sampler = new_sampler(config, context, context.prompts(config.probes))
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
    while done < len(tokens):
        chunk = _next_tokens(tokens[done:], config, context, pace)
        done += len(chunk)
        batch = _sampled(config, context, sampler, chunk, done, stage)
        pace.measure(*_paced(batch))
        yield batch


def _next_tokens(
    tokens: Sequence[Token], config: Config, context: Context, pace: Pace
) -> Sequence[Token]:
    """The tokens of the next batch. The pace counts those that need attempts not known yet."""
    threshold = context.spec.thresholds.asr
    end = sampled = 0
    for token in tokens[: pace.most]:
        sampled += not are_known(config, context.known.get(token.id), threshold)
        if sampled > pace.size:
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


def new_sampler(config: Config, context: Context, prompts: Mapping[str, Prompt]) -> Sampler:
    """A sampler of attempts in the prompts, with the step's settings."""
    model = context.backend.model
    rows = config.batch_size
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


def _sampled(
    config: Config,
    context: Context,
    sampler: Sampler,
    tokens: Sequence[Token],
    done: int,
    stage: Stage,
) -> Batch:
    start = time.perf_counter()
    known = {token.id: context.known[token.id] for token in tokens if token.id in context.known}
    threshold = context.spec.thresholds.asr
    sampled, reused, complete = attempts(
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
        for row, (token, (failed, said)) in enumerate(zip(tokens, sampled, strict=True))
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
    seconds = time.perf_counter() - start
    prompts = {name: as_sent(prompt, tokenizer) for name, prompt in sampler.prompts.items()}
    return Batch(
        facts,
        done,
        stage.total,
        seconds,
        counters,
        stage=stage.name,
        prompts=prompts if done == len(tokens) else {},
    )
