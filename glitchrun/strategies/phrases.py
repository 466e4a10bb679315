"""Phrases in `test` and `validate`: texts of several tokens, each beside another tokenization.

A phrase has no id of the vocabulary, so its results are rows of the table `phrases`, not verdicts
on tokens: readers of tokens never see them. Each row has the phrase and its control side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glitchrun.behaviour.significance import wilson
from glitchrun.behaviour.symptoms import symptom
from glitchrun.errors import RunError
from glitchrun.events import Attempt, Batch, Entry, Event, Stage, Token
from glitchrun.plan.passes import SCORE_BATCH
from glitchrun.plan.work import PAIRS
from glitchrun.probing.phrases import sequence_ps, stand_in, with_phrases
from glitchrun.probing.sampling import Sampler
from glitchrun.probing.token_choice import SamplingParams
from glitchrun.prompts.render import Prompt
from glitchrun.prompts.tokenizer import Tokenizer, encode_all
from glitchrun.spec.probes import Probe, probes_of
from glitchrun.strategies.context import Context
from glitchrun.strategies.prompt_lengths import PHRASE_SPARE
from glitchrun.strategies.test import Config as TestConfig
from glitchrun.strategies.tokens import has_phrases
from glitchrun.strategies.validate import Config as ValidateConfig
from glitchrun.vocabulary.phrases import Pairs, Phrase, incomplete_pairs, phrase_of, phrase_of_text

_REASONS = {
    "not_utf8": "these tokens together are no whole characters",
    "no_control": "no other tokenization of this text is known, so it has no control",
}


def takes_phrases(config: TestConfig | ValidateConfig, context: Context) -> bool:
    """Whether the step's `tokens` names phrases, or earlier steps that examined phrases."""
    return has_phrases(context.earlier, config.tokens)


def tested(config: TestConfig, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields greedy answers to each phrase and its control, and the probabilities of the text."""
    probes = probes_of(config.probes)
    rows = SCORE_BATCH.get(context.backend.device.type, SCORE_BATCH["cpu"])

    def examine(some: Sequence[Phrase]) -> tuple[list[Entry], dict[str, int]]:
        asker = _Greedy(context, probes, some)
        return [entry for phrase in some for entry in asker.rows(phrase)], dict(asker.counters)

    yield from _in_order(config, context, history, "verification", rows, examine)


def sampled(config: ValidateConfig, context: Context, history: Sequence[Batch]) -> Iterator[Event]:
    """Yields sampled attempts on each phrase and its control."""
    from glitchrun.strategies.validate.run import new_sampler  # imports this module

    prompts = context.prompts(config.probes)
    sampler = new_sampler(replace(config, match="text"), context, prompts)
    size = max(1, min(8, sampler.rows // (2 * config.repeats)))

    def examine(some: Sequence[Phrase]) -> tuple[list[Entry], dict[str, int]]:
        made = _attempts(sampler, prompts, some, config.repeats)
        entries = [entry for phrase in some for entry in _sampled_rows(phrase, made)]
        counters = dict(sampler.counters)
        sampler.counters.clear()
        return entries, counters

    yield from _in_order(config, context, history, "sampling", size, examine)


def _in_order(
    config: TestConfig | ValidateConfig,
    context: Context,
    history: Sequence[Batch],
    name: str,
    size: int,
    examine: Any,
) -> Iterator[Batch]:
    """Examines the phrases that the step names, `size` at a time, after those in `history`."""
    phrases, pairs = _named(config, context)
    stage = Stage(name, len(phrases), unit="phrases")
    context.announce(stage)
    done = sum(entry.table == "phrases" for batch in history for entry in batch.entries)
    for start in range(done, len(phrases), size):
        begun = time.perf_counter()
        some = phrases[start : start + size]
        entries, counters = examine(some)
        if start == 0 and pairs is not None:
            entries = [_pairs_row(pairs), *entries]
        yield Batch(
            tuple(entries),
            start + len(some),
            stage.total,
            time.perf_counter() - begun,
            counters,
            stage=name,
        )


# Which phrases --------------------------------------------------------------------------------


def _named(
    config: TestConfig | ValidateConfig, context: Context
) -> tuple[list[Phrase], Pairs | None]:
    """The phrases of a step, each once, and how they were drawn if they are pairs.

    Raises:
        RunError: a phrase has no control, its tokens are no whole characters, or nothing is left.
    """
    source: Mapping[str, Any] = config.tokens.get("phrases", {})
    pairs = None
    if "from" in config.tokens:
        found = _from_earlier(context, config.tokens)
    elif "pairs" in source:
        pairs = _drawn(context, source)
        found = pairs.phrases
    else:
        tokenizer, rows = context.backend.model.tokenizer, len(context.vocabulary)
        found = list(given_phrases(source, tokenizer, rows, context.at))
    unique = list({phrase.ids: phrase for phrase in found}.values())[: context.spec.limit]
    _check_positions(config, context, unique)
    return unique, pairs


def _check_positions(
    config: TestConfig | ValidateConfig, context: Context, phrases: Sequence[Phrase]
) -> None:
    """Raises RunError where the model has no positions for a phrase in a probe. Drawn pairs are not
    known before; `PromptLengths` has checked all others."""
    limit = context.backend.model.positions
    if limit is None or not limit.fixed:
        return
    more = config.max_new_tokens - 1 if isinstance(config, ValidateConfig) else None
    prompts = context.prompts(config.probes)
    for phrase in phrases:
        made = (phrase.ids, phrase.control)
        for probe in probes_of(config.probes):
            prompt = with_phrases(prompts[probe.name], made)
            answer = _most(phrase, probe) - 1 if more is None else more
            total = len(prompt.prefix_ids) + prompt.tail_length + answer
            if total > limit.count:
                raise RunError(
                    f"{context.at('tokens')}: the phrase {phrase.text!r} in the probe {probe.name} "
                    f"needs {total} positions, and the model has only {limit.count}; leave out the "
                    "probe, or name shorter phrases"
                )


def _drawn(context: Context, source: Mapping[str, Any]) -> Pairs:
    tokenizer, limit = context.backend.model.tokenizer, source.get("limit", PAIRS)
    limit = min(limit, context.spec.limit or limit)
    pairs = incomplete_pairs(
        context.vocabulary, tokenizer, source["pairs"], limit, context.spec.seed
    )
    if not pairs.phrases:
        why = ", ".join(f"{count:,} {reason}" for reason, count in pairs.dropped.items())
        raise RunError(
            f"{context.at('tokens.phrases.pairs')}: no pair of incomplete tokens is left: "
            f"{pairs.pairs:,} pairs of {pairs.first:,} first and {pairs.second:,} second tokens, "
            f"{pairs.drawn:,} drawn{f' ({why})' if why else ''}. Only byte-level vocabularies have "
            "such tokens; name phrases by `texts` or `ids` instead"
        )
    return pairs


def given_phrases(
    source: Mapping[str, Any], tokenizer: Tokenizer, rows: int, at: Callable[[str], str]
) -> Iterator[Phrase]:
    """The phrases that `tokens.phrases` names by texts or ids.

    Args:
        source: `tokens.phrases`.
        tokenizer: The model's.
        rows: Entries of the vocabulary.
        at: From the name of a parameter to where it is in the spec, for messages.

    Raises:
        RunError: a phrase has no control, its tokens are no whole characters, or an id is outside
            the vocabulary.
    """
    key = "texts" if "texts" in source else "ids"
    for place, one in enumerate(source[key][: source.get("limit")]):
        name = f"tokens.phrases.{key}[{place}]"
        if key == "ids" and max(one) >= rows:
            raise RunError(
                f"{at(name)}: token id {max(one)} is outside this model's vocabulary of "
                f"{rows} entries; check the ids against the model"
            )
        made = phrase_of_text(one, tokenizer) if key == "texts" else phrase_of(one, tokenizer)
        if isinstance(made, str):
            raise RunError(f"{at(name)}: {_REASONS[made]}; leave it out")
        yield made


def _from_earlier(context: Context, source: Mapping[str, Any]) -> list[Phrase]:
    """The phrases of earlier steps: those that a step failed to repeat, or all with `select`."""
    steps = [source["from"]] if isinstance(source["from"], str) else source["from"]
    entries = [e for step in steps for batch in context.earlier[step] for e in batch.entries]
    if len(steps) > sum(has_phrases(context.earlier, {"from": step}) for step in steps):
        raise RunError(
            f"{context.at('tokens.from')}: some of these steps examined phrases and others single "
            "tokens; use a step for each"
        )
    rows = [entry.cells for entry in entries if entry.table == "phrases"]
    if source.get("select") != "all":
        rows = [row for row in rows if row["result"] == "fail"]
    return [
        Phrase(tuple(row["ids"]), row["phrase"], tuple(row["control_ids"]), row["control"])
        for row in rows
    ]


def _pairs_row(pairs: Pairs) -> Entry:
    cells = {
        "rule": pairs.rule,
        "first": pairs.first,
        "second": pairs.second,
        "pairs": pairs.pairs,
        "drawn": pairs.drawn,
        **{name: pairs.dropped[name] for name in ("not_utf8", "not_reachable", "no_control")},
        "kept": len(pairs.phrases),
    }
    return Entry("pairs", cells)


def _identity(phrase: Phrase) -> dict[str, Any]:
    return {"phrase": phrase.text, "ids": list(phrase.ids)}


# Greedy answers -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one tokenization of a phrase gave in one probe."""

    passed: bool
    text: str
    p: float


class _Greedy:
    """The greedy answers to some phrases in both tokenizations, in all probes."""

    def __init__(
        self, context: Context, probes: Sequence[Probe], phrases: Sequence[Phrase]
    ) -> None:
        self._context = context
        self._sampler = _greedy_sampler(context, probes, phrases)
        self._found: dict[tuple[tuple[int, ...], str], _Answer] = {}
        self._intact: dict[tuple[int, ...], bool] = {phrase.ids: True for phrase in phrases}
        prompts = context.prompts(tuple(probes))
        for probe in probes:
            self._ask(probe, prompts[probe.name], phrases)
        self.counters = self._sampler.counters
        self.counters["not_intact"] = sum(not one for one in self._intact.values())

    def _ask(self, probe: Probe, prompt: Prompt, phrases: Sequence[Phrase]) -> None:
        asked = [(ids, phrase) for phrase in phrases for ids in (phrase.ids, phrase.control)]
        made = with_phrases(prompt, [ids for ids, _ in asked])
        texts: dict[tuple[int, ...], str] = {}
        for group in _by_length(asked):
            tokens = [stand_in(ids, phrase.text) for ids, phrase in group]
            most = [_most(phrase, probe) for _, phrase in group]
            answers = self._sampler.answers(made, tokens, 1, most)
            texts.update({ids: text for (ids, _), (text,) in zip(group, answers, strict=True)})
        tails = {ids: made.tail(stand_in(ids, "").id) for ids, _ in asked}
        spelled = [
            (tails[ids], answer) for ids, phrase in asked for answer in (phrase.ids, phrase.control)
        ]
        ps = sequence_ps(self._context.backend, prompt.prefix_ids, spelled)
        for row, (ids, phrase) in enumerate(asked):
            passed = _says(texts[ids], phrase.text, anywhere=probe.within > 1)
            p = max(ps[2 * row : 2 * row + 2])
            self._found[ids, probe.name] = _Answer(passed, texts[ids], p)
        tokenizer = self._context.backend.model.tokenizer
        whole = encode_all(tokenizer, [phrase.text.join(prompt.texts) for phrase in phrases])
        start = len(prompt.added_ids)
        for phrase, encoded in zip(phrases, whole, strict=True):
            sent = (*prompt.prefix_ids, *tails[phrase.ids])[start:]
            self._intact[phrase.ids] &= tuple(encoded) == sent

    def rows(self, phrase: Phrase) -> Iterator[Entry]:
        """The row of a phrase: it fails if it fails every probe, and so does its control."""
        own, control = (self._of(ids) for ids in (phrase.ids, phrase.control))
        cells = {
            **_identity(phrase),
            "result": _outcome(own),
            "p": max(one.p for one in own.values()),
            "said": next(iter(own.values())).text,
            "control": phrase.kind,
            "control_ids": list(phrase.control),
            "control_result": _outcome(control),
            "control_p": max(one.p for one in control.values()),
            "control_said": next(iter(control.values())).text,
            "passed_probes": [name for name, one in own.items() if one.passed],
            "intact": self._intact[phrase.ids],
        }
        yield Entry("phrases", cells)

    def _of(self, ids: tuple[int, ...]) -> dict[str, _Answer]:
        return {name: one for (found, name), one in self._found.items() if found == ids}


def _outcome(answers: Mapping[str, _Answer]) -> str:
    return "pass" if any(one.passed for one in answers.values()) else "fail"


def _says(answer: str, text: str, *, anywhere: bool) -> bool:
    """Whether an answer begins with a text, ignoring white space around it, or contains it."""
    wanted = text.strip() or text
    if anywhere:
        return wanted in answer
    return (answer.lstrip() if text.strip() else answer).startswith(wanted)


def _most(phrase: Phrase, probe: Probe) -> int:
    """Ids of a greedy answer that count."""
    return max(len(phrase.ids), len(phrase.control)) + probe.within - 1 + PHRASE_SPARE


def _greedy_sampler(
    context: Context, probes: Sequence[Probe], phrases: Sequence[Phrase]
) -> Sampler:
    backend = context.backend
    return Sampler(
        backend,
        params=SamplingParams(0.0, 1.0),
        max_new_tokens=max(_most(phrase, probe) for phrase in phrases for probe in probes),
        rows=2 * SCORE_BATCH.get(backend.device.type, SCORE_BATCH["cpu"]),
        seed=0,
        decode=backend.model.tokenizer.decode,
        stop_ids=context.stop_ids,
        stop_text=context.template.stop,
        match="never",
    )


def _by_length(
    asked: Sequence[tuple[tuple[int, ...], Phrase]],
) -> list[list[tuple[tuple[int, ...], Phrase]]]:
    """Sequences of one length run side by side; each once."""
    groups: dict[int, dict[tuple[int, ...], Phrase]] = {}
    for ids, phrase in asked:
        groups.setdefault(len(ids), {})[ids] = phrase
    return [list(group.items()) for group in groups.values()]


# Sampled attempts -----------------------------------------------------------------------------

_Made = Mapping[tuple[int, ...], tuple[tuple[bool, ...], tuple[Attempt, ...]]]


def _attempts(
    sampler: Sampler, prompts: Mapping[str, Prompt], phrases: Sequence[Phrase], attempts: int
) -> _Made:
    """By ids, whether each attempt failed, and what was said."""
    asked = [(ids, phrase) for phrase in phrases for ids in (phrase.ids, phrase.control)]
    sequences = [ids for ids, _ in asked]
    sampler.prompts = {name: with_phrases(one, sequences) for name, one in prompts.items()}
    found = {}
    for group in _by_length(asked):
        tokens: list[Token] = [stand_in(ids, phrase.text) for ids, phrase in group]
        made = sampler.attempt(tokens, attempts)
        found.update({ids: one for (ids, _), one in zip(group, made, strict=True)})
    return found


def _sampled_rows(phrase: Phrase, made: _Made) -> Iterator[Entry]:
    (own, said), (control, control_said) = made[phrase.ids], made[phrase.control]
    yield Entry(
        "phrases",
        {
            **_identity(phrase),
            **_rate("", own),
            "control": phrase.kind,
            "control_ids": list(phrase.control),
            **_rate("control_", control),
        },
    )
    for tokens, attempts in (("phrase", said), ("control", control_said)):
        for one in attempts:
            cells = {
                "phrase": phrase.text,
                "tokens": tokens,
                "probe": one.probe,
                "attempt": one.number,
                "text": one.text,
                "said": one.said,
                "symptom": None if one.said else symptom(phrase.text, one.text),
            }
            yield Entry("phrase_attempts", cells)


def _rate(prefix: str, outcomes: Sequence[bool]) -> dict[str, Any]:
    asr = wilson(sum(outcomes), len(outcomes))
    cells = {
        "result": "fail" if all(outcomes) else "pass",
        "failures": sum(outcomes),
        "attempts": len(outcomes),
        "asr": asr.value,
        "asr_low": asr.low,
        "asr_high": asr.high,
    }
    return {f"{prefix}{name}": value for name, value in cells.items()}
