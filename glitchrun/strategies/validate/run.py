"""Runs `validate`: samples attempts on each token, and estimates its ASR with its interval."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from glitchrun.events import Batch, Event, Sampled, Stage, Token
from glitchrun.probing.continuous_batch import Ended, Task
from glitchrun.probing.memory_limits import Pace, standard_rows
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
from glitchrun.strategies.validate.attempts import Collected, collect, estimate

_Chunk = tuple[Config, int, Sequence[Token], Mapping[int, Sampled]]
"""Tokens with the attempts known on them, the step's Config, and the rows of a pass."""
_Part = tuple[tuple[Sampled, ...], dict[str, int]]
"""The attempts on some tokens, and what they took."""
_WORK = "continuations"
"""The counter whose rate is shown."""
_WRITE_SECONDS = 2.0
"""Tokens that are finished within this time are written to the ledger together."""
_CHUNK = 8
"""Attempts of a worker's rows for each of its tokens: most tokens that need 5 have finished all
when a kill comes, and the rows are full for most of the time."""


def run(config: Config, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields the attempts on a few tokens, or phrases, at a time, in the order in which they are
    named."""
    if phrases.takes_phrases(config, context):
        yield from phrases.sampled(config, context, history)
        return
    tokens = context.tokens(config.tokens)
    sampler = new_sampler(config, context, context.prompts(config.probes))
    context.tools[_key(config, sampler.rows)] = sampler
    batches = list(history)
    stage = Stage("sampling", len(tokens), work=_WORK)
    done = sum(len(batch.token_facts) for batch in history)
    for batch in _sampled_in_order(config, context, sampler, tokens, done, stage):
        batches.append(batch)
        yield batch
    yield from _sampled_controls(config, context, sampler, tokens, batches)


def _sampled_in_order(
    config: Config,
    context: Context,
    sampler: Sampler,
    tokens: Sequence[Token],
    done: int,
    stage: Stage,
) -> Iterator[Batch]:
    """Samples the tokens of a stage, without the first `done`."""
    context.announce(stage)
    start = time.perf_counter()
    left = tokens[done:]
    if context.workers.size == 1:
        parts = _parts(config, context, sampler, left, stage)
    else:
        parts = context.spread(sampled, _chunks(config, context, sampler.rows, left))
    for facts, counters in parts:
        done += len(facts)
        prompts = _as_sent(context, sampler) if done == len(tokens) else {}
        seconds = time.perf_counter() - start
        yield Batch(facts, done, stage.total, seconds, counters, stage=stage.name, prompts=prompts)
        start = time.perf_counter()


def _as_sent(context: Context, sampler: Sampler) -> dict[str, tuple[str, ...]]:
    tokenizer = context.backend.model.tokenizer
    return {name: as_sent(prompt, tokenizer) for name, prompt in sampler.prompts.items()}


def _parts(
    config: Config, context: Context, sampler: Sampler, tokens: Sequence[Token], stage: Stage
) -> Iterator[_Part]:
    """The attempts on the tokens: some of them as often as `_WRITE_SECONDS` says."""
    start, first, ready = time.perf_counter(), 0, []
    for one in _collected(config, context, sampler, tokens, context.known):
        ready.append(one)
        end = first + len(ready)
        if end == len(tokens) or time.perf_counter() - start > _WRITE_SECONDS:
            # On average, tokens that are not finished have half of their attempts.
            context.announce(replace(stage, ahead=(sampler.begun() - end) / 2))
            yield _part(config, context, sampler, tokens[first:end], ready)
            start, first, ready = time.perf_counter(), end, []


def _chunks(
    config: Config, context: Context, rows: int, tokens: Sequence[Token]
) -> Iterator[_Chunk]:
    """The tokens in parts that a worker samples together, with the attempts known on them."""
    size = max(1, min(rows // _CHUNK, math.ceil(len(tokens) / context.workers.size)))
    for start in range(0, len(tokens), size):
        chunk = tokens[start : start + size]
        known = {one.id: context.known[one.id] for one in chunk if one.id in context.known}
        yield config, rows, chunk, known


def sampled(context: Context, asked: _Chunk) -> _Part:
    """Attempts on some tokens, and what they took. Any worker can sample them."""
    config, rows, tokens, known = asked
    sampler = context.tool(
        _key(config, rows),
        lambda: new_sampler(config, context, context.prompts(config.probes), rows),
    )
    found = list(_collected(config, context, sampler, tokens, known))
    return _part(config, context, sampler, tokens, found)


def _collected(
    config: Config,
    context: Context,
    sampler: Sampler,
    tokens: Sequence[Token],
    known: Mapping[int, Sampled],
) -> Iterator[Ended[Collected]]:
    """The attempts on each token, in their order: as soon as those on the tokens before it are
    finished, too."""
    order, threshold = tuple(sampler.prompts), context.spec.thresholds.asr

    def task(token: Token) -> Task[Collected]:
        collecting = collect(config, known.get(token.id), order=order, threshold=threshold)
        return sampler.attempts_asked(token, collecting)

    finished: dict[int, Ended[Collected]] = {}
    first = 0
    for one in sampler.run(task(token) for token in tokens):
        finished[one.number] = one
        while first in finished:
            yield finished.pop(first)
            first += 1


def _part(
    config: Config,
    context: Context,
    sampler: Sampler,
    tokens: Sequence[Token],
    ended: Sequence[Ended[Collected]],
) -> _Part:
    """The facts of some tokens, and what they took.

    `continuations`, `drawn`, `distinct` and `resampled` count the attempts on these tokens, so
    their sums over a step do not depend on kills and resumes (`resampled` may by rounding).
    `sampling_forwards` and `rows` count the passes that ran since the last part; those of attempts
    that a kill interrupts are run and counted again.
    """
    found = [one.value for one in ended]
    ids = [token.id for token in tokens]
    tokenizer, threshold = context.backend.model.tokenizer, context.spec.thresholds.asr
    kept = [intact(prompt, ids, tokenizer) for prompt in sampler.prompts.values()]
    facts = tuple(
        replace(
            estimate(token, one.made[0], threshold, all(column[row] for column in kept)),
            continuations=one.made[1],
        )
        for row, (token, one) in enumerate(zip(tokens, found, strict=True))
    )
    counters = dict(sum((one.work for one in ended), sampler.counters))
    sampler.counters.clear()
    if config.sequential:  # continuations of different rounds are not compared
        counters.pop("distinct", None)
    reused = {
        "reused_attempts": sum(one.reused for one in found),
        "reused_tokens": sum(one.is_known for one in found),
    }
    counters |= {name: count for name, count in reused.items() if count}
    counters["not_intact"] = sum(not fact.intact for fact in facts)
    if lacking := sum(prompt.dropped_system is not None for prompt in sampler.prompts.values()):
        counters["dropped_system"] = lacking * len(tokens)
    return facts, counters


def _sampled_controls(
    config: Config,
    context: Context,
    sampler: Sampler,
    tokens: Sequence[Token],
    history: Sequence[Batch],
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
        for batch in _sampled_in_order(config, context, sampler, controls, done, stage):
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
        # A streamed model is read once for each position, however many rows there are.
        pace=None if context.backend.pass_rows else Pace(len(prompts) * config.max_new_tokens),
    )


def _key(config: Config, rows: int) -> tuple[str, str, int]:
    return "sampler", repr(config), rows
