"""Checks of the classification of tokens, and of their verification."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scipy.stats import binomtest

from glitchrun.events import Batch, Sampled, Verified
from glitchrun.strategies import validate
from glitchrun.strategies.context import Context
from glitchrun.strategies.findings import Checked, Finding, at_least, at_most, equals
from glitchrun.strategies.verdicts import Judge
from glitchrun.vocabulary.controls import matched

if TYPE_CHECKING:
    from glitchrun.strategies.check import Config

_ORDINARY = (" the", " and", " of", " is", " in")
_SHOWN = 10
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


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
    ordinary = [one for text in _ORDINARY if (one := vocabulary.find(text)) is not None]
    labels: Labels = [
        ("the tokenizer's special ids", ("special", "unused"), added),
        ("rows without an entry", ("unused",), beyond),
        ("pieces like <0x0A>", ("byte",), raw),
        ("common words", ("normal",), ordinary),
    ]
    return [label for label in labels if label[2]]


def verification(config: Config, context: Context) -> Checked:
    """Known glitch tokens fail, controls pass, and attempts are the same a second time."""
    glitch = [token.id for token in context.tokens({"ids": config.glitch})]
    controls = _controls(config, context, glitch)
    judge = Judge(context, "strict")
    judged = {fact.token.id: fact.glitch for fact in _judge(judge, [*glitch, *controls])}
    alarms, n = sum(judged[one] for one in controls), len(controls)
    found = [Finding("controls verified", n)]
    if n:
        interval = binomtest(alarms, n).proportion_ci(confidence_level=0.95, method="wilson")
        found += [
            at_most("share of controls called glitch", alarms / n, config.max_false_alarms),
            Finding("95 % interval of that", f"{interval.low:.3f} to {interval.high:.3f}"),
        ]
    if not glitch:
        why = "no token known to be a glitch is given (glitch); controls alone show no detection"
        return Checked("verification", tuple(found), why)
    missed = [one for one in glitch if not judged[one]]
    found.append(
        equals("known glitch tokens missed", ", ".join(map(str, missed)) or "none", "none")
    )
    return Checked("verification", (*found, *_attempts(config, context, glitch)))


def _judge(judge: Judge, ids: Sequence[int]) -> list[Verified]:
    return [
        fact
        for start in range(0, len(ids), judge.rows)
        for fact in judge.judge(ids[start : start + judge.rows])
    ]


def _controls(config: Config, context: Context, glitch: Sequence[int]) -> list[int]:
    """As given, or ordinary tokens like the glitch tokens, or like common words without any."""
    if not isinstance(config.controls, int):
        return [token.id for token in context.tokens({"ids": config.controls})]
    like = glitch or [one for t in _ORDINARY if (one := context.vocabulary.find(t)) is not None]
    seed = context.spec.seed
    drawn = matched(context.vocabulary, like or context.scope()[:1], config.controls, seed)
    return [match.token_id for match in drawn]


def _attempts(config: Config, context: Context, glitch: Sequence[int]) -> list[Finding]:
    """Sampled twice from one seed, the second time token by token."""
    together = _sample(config, context, glitch)
    alone = [fact for one in glitch for fact in _sample(config, context, [one])]
    confirmed = sum(fact.confirmed for fact in together)
    same = [fact.outcomes for fact in together] == [fact.outcomes for fact in alone]
    return [
        at_least("known glitch tokens confirmed by sampling", confirmed, len(glitch)),
        Finding(
            "attempts drawn together and one token at a time",
            "equal" if same else "different",
            "equal",
            same,
        ),
    ]


def _sample(config: Config, context: Context, ids: Sequence[int]) -> list[Sampled]:
    asked = validate.Config(
        tokens={"ids": list(ids)}, attempts=config.attempts, max_new_tokens=config.max_new_tokens
    )
    events = validate.run(asked, context, ())
    found = [fact for event in events if isinstance(event, Batch) for fact in event.token_facts]
    return [fact for fact in found if isinstance(fact, Sampled)]
