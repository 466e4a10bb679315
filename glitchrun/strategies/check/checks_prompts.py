"""The checks `template`, `prediction` and `chat`, which `check/run.py` calls by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from statistics import fmean
from typing import Any

from glitchrun.probing.sequence_scoring import ScoredSequence, read_prompts
from glitchrun.prompts.render import render_text
from glitchrun.prompts.template import Template, opening_ids
from glitchrun.prompts.tokenizer import Tokenizer, encode
from glitchrun.strategies.check import Config
from glitchrun.strategies.check.outcomes import (
    Checked,
    Finding,
    at_least,
    at_most,
    equals,
    within_factor,
)
from glitchrun.strategies.context import Context
from glitchrun.strategies.predict.run import cases, prompt_names, spellings

_USER, _SYSTEM = "The quick brown fox", "Answer briefly."


def template(config: Config, context: Context) -> Checked:
    """Checks that the prompt begins with one BOS and contains user and system text once."""
    used, tokenizer = context.template, context.backend.model.tokenizer
    system = _SYSTEM if used.carries_system else None
    text, ids = render_text(used, _USER, tokenizer, system)
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    found = [
        equals("name", used.name, (config.expect or {}).get("template")),
        Finding("rule", used.rule),
        _bos(ids, used, tokenizer),
        *_opening(ids, used, tokenizer),
        equals("user text once in the decoded prompt", decoded.count(_USER), 1),
        _encoded_again(text, ids, tokenizer),
    ]
    if used.carries_system:
        found.append(equals("system text once in the decoded prompt", decoded.count(_SYSTEM), 1))
    else:
        found.append(
            Finding("system text", "not supported by this template; a spec with one is refused")
        )
    return Checked("template", tuple(found))


def _encoded_again(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> Finding:
    again = encode(tokenizer, text)
    same = tuple(ids[len(ids) - len(again) :]) == again
    return Finding("ids of the prompt's text", "equal" if same else "different", "equal", same)


def _bos(ids: Sequence[int], used: Template, tokenizer: Tokenizer) -> Finding:
    """Requires exactly one BOS at the start, also if every turn begins with it, as in ChatML."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return Finding("BOS at the start of the prompt", "this tokenizer has none")
    belongs = opening_ids(used, tokenizer)[:1] == (bos,)
    opening = len(list(takewhile(lambda one: one == bos, ids)))
    wanted = "1" if belongs else "at most 1"
    holds = opening == 1 if belongs else opening <= 1
    return Finding("BOS at the start of the prompt", opening, wanted, holds)


def _opening(ids: Sequence[int], used: Template, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Requires the tokenizer's own opening ids once, if they are more than a BOS."""
    opening = opening_ids(used, tokenizer)
    if opening in ((), (tokenizer.bos_token_id,)):
        return
    times = 0
    while tuple(ids[times * len(opening) : (times + 1) * len(opening)]) == opening:
        times += 1
    names = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(opening))))
    yield equals(f"{names} at the start of the prompt", times, 1)


def prediction(config: Config, context: Context) -> Checked:
    """Checks the expected continuation of each raw text, with and without a trailing space."""
    found = _measured(config, context, ("raw", "raw-space"))
    return _held("prediction", config, found, "raw")


def chat(config: Config, context: Context) -> Checked:
    """Checks the expected continuation in the chat format, and compares its log-probability with
    that after the raw text."""
    found = _measured(config, context, ("raw", "chat"))
    checked = _held("chat", config, found, "chat")
    gain = fmean(one["chat"].log_p - one["raw"].log_p for one in found.values())
    what = "mean log-probability above raw (nats)"
    limit = config.min_improvement
    finding = Finding(what, gain) if limit is None else at_least(what, gain, limit)
    return Checked(checked.name, (*checked.findings, finding))


def _measured(
    config: Config, context: Context, formats: Sequence[str]
) -> dict[str, dict[str, ScoredSequence]]:
    """The score of the expected continuation, by prompt and format."""
    backend = context.backend
    found: dict[str, dict[str, ScoredSequence]] = {}
    for prompt, name in zip(config.prompts, prompt_names(config.prompts), strict=True):
        forms = spellings(prompt["expected"], backend.model.tokenizer)
        own = cases(prompt, name, formats, context)
        readings = read_prompts(backend, [(case.ids, forms) for case in own], 1)
        found[name] = {
            case.format: one.sequence
            for case, one in zip(own, readings, strict=True)
            if one.sequence is not None
        }
    return found


def _held(
    name: str, config: Config, found: Mapping[str, Mapping[str, ScoredSequence]], form: str
) -> Checked:
    """Compares rank and probability with the prompt's reference, or the rank with `max_rank`."""
    findings = []
    for prompt, own in zip(config.prompts, prompt_names(config.prompts), strict=True):
        for kind, one in found[own].items():
            reference = (prompt.get("reference") or {}).get(kind, {})
            findings += _against(f"«{own}» {kind}", one, reference, config, limit=kind == form)
    return Checked(name, tuple(findings))


def _against(
    label: str, one: ScoredSequence, reference: Mapping[str, Any], config: Config, *, limit: bool
) -> list[Finding]:
    rank, p = f"{label}: rank", f"{label}: p"
    findings = [Finding(rank, one.ranks[0]), Finding(p, one.first_p)]
    if "rank" in reference:
        findings[0] = within_factor(rank, one.ranks[0], reference["rank"], config.rank_factor)
    elif limit and "p" not in reference:
        findings[0] = at_most(rank, one.ranks[0], config.max_rank)
    if "p" in reference:
        findings[1] = within_factor(p, one.first_p, reference["p"], config.p_factor)
    return [*findings, Finding(f"{label}: log-probability (nats)", one.log_p)]
