"""The checks `classifier` and `verification`, which `check/run.py` calls by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from scipy.stats import binomtest

from glitchrun.events import Batch, Sampled, Token, Verified
from glitchrun.strategies.check import Config
from glitchrun.strategies.check.outcomes import Checked, Finding, at_least, at_most, equals
from glitchrun.strategies.context import Context
from glitchrun.strategies.judging import Judge
from glitchrun.strategies.validate import Config as ValidateConfig
from glitchrun.strategies.validate.run import new_sampler
from glitchrun.strategies.validate.run import run as validate
from glitchrun.vocabulary.controls import matched_controls

COMMON = (" the", " and", " of", " is", " in")
"""Frequent English words, each usually one token."""
_SHOWN = 10
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_PROBE = "repeat"
"""The probe whose continuations are sampled twice."""


def classifier(config: Config, context: Context) -> Checked:
    """Checks the categories of labelled tokens and of those that the tokenizer determines."""
    categories = context.vocabulary.categories
    counts = Counter(categories)
    found = [
        equals("rows classified", sum(counts.values()), context.backend.model.vocab_size),
        *(Finding(f"rows {name}", number) for name, number in sorted(counts.items())),
    ]
    for name, allowed, ids in (*_labelled(config, context), *_known(context)):
        wrong = [one for one in ids if categories[one] not in allowed]
        value = f"{len(ids) - len(wrong)} of {len(ids)}"
        value += f"; not {', '.join(map(str, wrong[:_SHOWN]))}" if wrong else ""
        found.append(Finding(name, value, f"all of them {' or '.join(allowed)}", not wrong))
    return Checked("classifier", tuple(found))


Labels = list[tuple[str, tuple[str, ...], Sequence[int]]]
"""Of each group of tokens: description, allowed categories, ids."""


def _labelled(config: Config, context: Context) -> Labels:
    given: Mapping[str, Sequence[int]] = config.labelled or {}
    return [
        (f"labelled {name}", (name,), [one.id for one in context.tokens({"ids": ids}, whole=True)])
        for name, ids in given.items()
    ]


def _known(context: Context) -> Labels:
    """Tokens whose category follows from the tokenizer's own lists, and common words."""
    tokenizer, vocabulary = context.backend.model.tokenizer, context.vocabulary
    added = [one for one in tokenizer.all_special_ids if one < len(vocabulary)]
    beyond = [row for row, piece in enumerate(vocabulary.pieces) if piece is None]
    raw = [row for row, piece in enumerate(vocabulary.pieces) if _BYTE.fullmatch(piece or "")]
    ordinary = [one for text in COMMON if (one := vocabulary.find(text)) is not None]
    labels: Labels = [
        ("the tokenizer's special ids", ("special", "unused"), added),
        ("rows without an entry", ("unused",), beyond),
        # A byte without another entry is ordinary text: Mistral encodes a line break this way.
        ("pieces like <0x0A>", ("byte", "normal"), raw),
        ("common words", ("normal",), ordinary),
    ]
    return [label for label in labels if label[2]]


def verification(config: Config, context: Context) -> Checked:
    """Checks that known glitch tokens are flagged and confirmed and controls are not, and that
    attempts are reproducible and differ from each other."""
    glitch = [token.id for token in context.tokens({"ids": config.glitch})]
    controls = _controls(config, context, glitch)
    ids = list(dict.fromkeys([*glitch, *controls]))
    verdicts = {fact.token.id for fact in _judged(context, ids) if fact.glitch}
    confirmed = {fact.token.id for fact in _sampled(config, context, ids) if fact.confirmed}
    found = [
        *_alarms("called glitch", controls, verdicts, config.max_false_alarms),
        *_alarms("confirmed by sampling", controls, confirmed, config.max_false_alarms),
    ]
    if not glitch:
        why = "no known glitch token is given (glitch); controls alone cannot show detection"
        return Checked("verification", tuple(found), why)
    found += [
        _all_in("known glitch tokens missed", glitch, verdicts),
        _all_in("known glitch tokens not confirmed by sampling", glitch, confirmed),
        *_attempts(config, context, glitch),
    ]
    return Checked("verification", tuple(found))


def _controls(config: Config, context: Context, glitch: Sequence[int]) -> list[int]:
    """The given controls, or the requested number of tokens similar to common words.

    Tokens as rare as the glitch tokens may be unknown glitch tokens. As controls, they would count
    as false alarms.
    """
    if not isinstance(config.controls, int):
        return [token.id for token in context.tokens({"ids": config.controls})]
    words = [one for text in COMMON if (one := context.vocabulary.find(text)) is not None]
    like = words or context.scope()[:1]
    barred = {*glitch, *context.excluded(("normal",))}
    drawn = matched_controls(
        context.vocabulary, like, config.controls, context.spec.seed, exclude=barred, mutual=True
    )
    return [match.token_id for match in drawn]


def _alarms(
    what: str, controls: Sequence[int], flagged: Collection[int], limit: float
) -> Iterator[Finding]:
    if not controls:
        return
    alarms, n = sum(one in flagged for one in controls), len(controls)
    interval = binomtest(alarms, n).proportion_ci(confidence_level=0.95, method="wilson")
    yield at_most(f"share of {n} controls {what}", alarms / n, limit)
    yield Finding(
        f"95 % interval of the share {what}", f"{interval.low:.3f} to {interval.high:.3f}"
    )


def _all_in(what: str, ids: Sequence[int], flagged: Collection[int]) -> Finding:
    left = [one for one in ids if one not in flagged]
    return equals(what, ", ".join(map(str, left)) or "none", "none")


def _judged(context: Context, ids: Sequence[int]) -> Iterator[Verified]:
    judge = Judge(context, "strict")
    for start in range(0, len(ids), judge.rows):
        yield from judge.judge(ids[start : start + judge.rows])


def _attempts(config: Config, context: Context, glitch: Sequence[int]) -> Iterator[Finding]:
    """Whether a second sampling, token by token, gives the same continuations, and whether the
    continuations of one token differ.

    Outcomes show neither, because all attempts on a glitch token fail.
    """
    asked = _asked(config, glitch)
    sampler = new_sampler(asked, context, context.prompts((_PROBE,)))
    tokens = context.tokens(asked.tokens)

    def drawn(some: Sequence[Token]) -> set[tuple[int, tuple[int, ...]]]:
        made = zip(some, sampler.attempt(some, asked.attempts), strict=True)
        return {(token.id, one.ids) for token, (_, said) in made for one in said}

    together = drawn(tokens)
    same = together == set().union(*(drawn([token]) for token in tokens))
    yield Finding(
        "attempts drawn together and one token at a time",
        "equal" if same else "different",
        "equal",
        same,
    )
    if asked.attempts > 1:
        differ = sum(number > 1 for number in Counter(one for one, _ in together).values())
        yield at_least(f"of {len(glitch)} glitch tokens, those whose attempts differ", differ, 1)


def _sampled(config: Config, context: Context, ids: Sequence[int]) -> Iterator[Sampled]:
    for event in validate(_asked(config, ids), context, ()):
        facts = event.token_facts if isinstance(event, Batch) else ()
        yield from (fact for fact in facts if isinstance(fact, Sampled))


def _asked(config: Config, ids: Sequence[int]) -> ValidateConfig:
    return ValidateConfig(
        tokens={"ids": list(ids)}, attempts=config.attempts, max_new_tokens=config.max_new_tokens
    )
