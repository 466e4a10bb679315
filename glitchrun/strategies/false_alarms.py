"""Matched controls: how often a step calls ordinary tokens glitch tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from glitchrun.events import Batch, Control, Stage
from glitchrun.strategies.context import Context
from glitchrun.strategies.judging import Judge, chunked, judged
from glitchrun.vocabulary.character_groups import doubtful_groups, group_of
from glitchrun.vocabulary.controls import MatchedControl, matched_controls


def draw(
    context: Context, suspects: Sequence[int], count: int, batches: Sequence[Batch]
) -> list[MatchedControl]:
    """The controls of a step, from its seed and facts alone: the same after an interruption.

    They are ordinary tokens that resemble the suspects. The spec does not exclude them, this step
    has not examined them, and no earlier step has flagged them. Tokens that an earlier step has
    examined come last.
    """
    examined = {fact.token.id for batch in batches for fact in batch.token_facts}
    earlier = [batch for found in context.earlier.values() for batch in found]
    before = [fact for batch in earlier for fact in batch.token_facts]
    flagged = {fact.token.id for fact in before if fact.flagged}
    return matched_controls(
        context.vocabulary,
        suspects,
        count,
        context.spec.seed,
        exclude=examined | flagged | context.excluded(("normal",)),
        avoid={fact.token.id for fact in before},
    )


def draw_elsewhere(
    context: Context, batches: Sequence[Batch], *, mutual: bool = False
) -> list[MatchedControl]:
    """Additional controls from other scripts, for scripts whose own controls are not informative.

    If most ordinary tokens of a script are false alarms, either the check does not suit the script
    or the model hardly knows it; its controls cannot tell which. Each of these controls therefore
    gets an additional one of similar length and frequency from the other scripts. Empty if no
    script is doubtful. `mutual` as for `matched`, after every token was verified.
    """
    controls = [control for batch in batches for control in batch.controls]
    doubtful = doubtful_groups((one.token.text, one.alarm) for one in controls)
    targets = [one.of for one in controls if group_of(one.token.text) in doubtful]
    if not targets:
        return []
    facts = [fact for batch in batches for fact in batch.token_facts]
    earlier = [batch for found in context.earlier.values() for batch in found]
    before = [fact for batch in earlier for fact in batch.token_facts]
    own = {fact.token.id for fact in facts}
    if mutual:
        taken = set(context.vocabulary.ids(("normal",))) - own
    else:
        flagged = {fact.token.id for fact in before if fact.flagged}
        taken = own | flagged | context.excluded(("normal",))
    return matched_controls(
        context.vocabulary,
        targets,
        len(targets),
        context.spec.seed,
        exclude=taken | {control.token.id for control in controls},
        avoid={fact.token.id for fact in before},
        mutual=mutual,
        outside=doubtful,
    )


def judged_controls(
    context: Context, judge: Judge, count: int, batches: Sequence[Batch]
) -> Iterator[Batch]:
    """Verifies controls of the glitch tokens that `batches` found, except those already
    verified."""
    if not count:
        return
    history = list(batches)  # the caller's grows with what is yielded
    facts = [fact for batch in history for fact in batch.token_facts]
    matches = draw(context, [fact.token.id for fact in facts if fact.flagged], count, history)
    for elsewhere in (False, True):
        if elsewhere:
            matches = draw_elsewhere(context, history)
        if not matches:
            continue
        stage = control_stage(len(matches), elsewhere=elsewhere)
        context.announce(stage)
        first = elsewhere_done(history) if elsewhere else controls_done(history)
        ids = [match.token_id for match in matches[first:]]
        for verdicts, batch in judged(context, judge, chunked(ids, judge), first, stage):
            chunk = matches[batch.done - len(verdicts) : batch.done]
            history.append(as_controls(batch, chunk, elsewhere=elsewhere))
            yield history[-1]


def control_stage(count: int, *, elsewhere: bool = False, work: str = "") -> Stage:
    """The stage of `count` controls: those of the same script, or the further ones."""
    return Stage("controls elsewhere" if elsewhere else "controls", count, work=work)


def scanned_controls(context: Context, count: int, batches: Sequence[Batch]) -> Iterator[Batch]:
    """Marks controls among the tokens of a scan, which has verified them already."""
    start = time.perf_counter()
    facts = {fact.token.id: fact for batch in batches for fact in batch.token_facts}
    if not count or controls_done(batches):
        return
    found = [token_id for token_id, fact in facts.items() if fact.flagged]
    outside = set(context.vocabulary.ids(("normal",))) - facts.keys()
    matches = matched_controls(
        context.vocabulary, found, count, context.spec.seed, exclude=outside, mutual=True
    )
    if not matches:
        return
    marked = [Control(one.of, one.alike, facts[one.token_id]) for one in matches]
    others = draw_elsewhere(context, [*batches, Batch(tuple(marked), 0, None)], mutual=True)
    marked += [Control(one.of, one.alike, facts[one.token_id], elsewhere=True) for one in others]
    n, seconds = len(marked), time.perf_counter() - start
    stage = control_stage(n)
    context.announce(stage)
    yield Batch(tuple(marked), n, n, seconds, stage=stage.name)


def as_controls(
    batch: Batch, matches: Sequence[MatchedControl], *, elsewhere: bool = False
) -> Batch:
    """The batch with each fact marked as that of a control."""
    pairs = zip(matches, batch.token_facts, strict=True)
    made = (Control(one.of, one.alike, fact, elsewhere) for one, fact in pairs)
    return replace(batch, facts=tuple(made))


def controls_done(batches: Sequence[Batch]) -> int:
    """Controls of the same script that a step has verified."""
    return sum(len(batch.controls) for batch in batches)


def elsewhere_done(batches: Sequence[Batch]) -> int:
    """Controls of other scripts that a step has verified."""
    return sum(len(batch.controls_elsewhere) for batch in batches)
