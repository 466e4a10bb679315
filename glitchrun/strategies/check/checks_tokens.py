"""The checks of token categories and of the verification of tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from scipy.stats import binomtest

from glitchrun.events import Batch, Sampled, Token, Verified
from glitchrun.strategies.check import Config
from glitchrun.strategies.check.outcomes import Checked, Finding, at_least, at_most, equals
from glitchrun.strategies.context import Context
from glitchrun.strategies.validate import Config as ValidateConfig
from glitchrun.strategies.validate.run import new_sampler
from glitchrun.strategies.validate.run import run as validate
from glitchrun.strategies.verdicts import Judge
from glitchrun.vocabulary.controls import matched_controls

COMMON = (" the", " and", " of", " is", " in")
"""Words that people write."""
_SHOWN = 10
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_PROBE = "repeat"
"""Whose continuations are drawn twice."""


def classifier(config: Config, context: Context) -> Checked:
    """Tokens of known classes, those of the spec and those that any tokenizer tells by itself."""
    categories = context.vocabulary.categories
    counts = Counter(categories)
    found = [
        equals("rows classified", sum(counts.values()), context.backend.model.vocab_size),
        *(Finding(f"rows {name}", number) for name, number in sorted(counts.items())),
    ]
    for name, allowed, ids in (*_labelled(config, context), *_known(context)):
        wrong = [one for one in ids if categories[one] not in allowed]
        told = f"{len(ids) - len(wrong)} of {len(ids)}"
        told += f"; not {', '.join(map(str, wrong[:_SHOWN]))}" if wrong else ""
        found.append(Finding(name, told, f"all of them {' or '.join(allowed)}", not wrong))
    return Checked("classifier", tuple(found))


Labels = list[tuple[str, tuple[str, ...], Sequence[int]]]
"""What they are, categories that are right, ids."""


def _labelled(config: Config, context: Context) -> Labels:
    given: Mapping[str, Sequence[int]] = config.labelled or {}
    return [
        (f"labelled {name}", (name,), [token.id for token in context.tokens({"ids": ids})])
        for name, ids in given.items()
    ]


def _known(context: Context) -> Labels:
    """Rows whose class follows from the tokenizer's own lists and from text that people write."""
    tokenizer, vocabulary = context.backend.model.tokenizer, context.vocabulary
    added = [one for one in tokenizer.all_special_ids if one < len(vocabulary)]
    beyond = [row for row, piece in enumerate(vocabulary.pieces) if piece is None]
    raw = [row for row, piece in enumerate(vocabulary.pieces) if _BYTE.fullmatch(piece or "")]
    ordinary = [one for text in COMMON if (one := vocabulary.find(text)) is not None]
    labels: Labels = [
        ("the tokenizer's special ids", ("special", "unused"), added),
        ("rows without an entry", ("unused",), beyond),
        # One that no other entry stands for is text of its own: Mistral writes a line break so.
        ("pieces like <0x0A>", ("byte", "normal"), raw),
        ("common words", ("normal",), ordinary),
    ]
    return [label for label in labels if label[2]]


def verification(config: Config, context: Context) -> Checked:
    """Known glitch tokens fail and are confirmed, controls pass and are not, and attempts are the
    same a second time, but differ among themselves."""
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
        why = "no token known to be a glitch is given (glitch); controls alone show no detection"
        return Checked("verification", tuple(found), why)
    found += [
        _all_in("known glitch tokens missed", glitch, verdicts),
        _all_in("known glitch tokens not confirmed by sampling", glitch, confirmed),
        *_attempts(config, context, glitch),
    ]
    return Checked("verification", tuple(found))


def _controls(config: Config, context: Context, glitch: Sequence[int]) -> list[int]:
    """As given, or the number asked for, like common words.

    Not like the glitch tokens: tokens as rare as those may well be glitch tokens that nobody knows
    of, and the check would hold that against the verification.
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
    """Whether continuations are the same a second time, token by token, and a token's own differ.

    Outcomes show neither: attempts on a glitch token fail whatever was drawn.
    """
    asked = _asked(config, glitch)
    sampler = new_sampler(asked, context, context.prompts((_PROBE,)))
    tokens = context.tokens(asked.tokens)

    def drawn(some: Sequence[Token]) -> set[tuple[int, tuple[int, ...]]]:
        sampler.sample(some, asked.attempts)
        return sampler.distinct

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
