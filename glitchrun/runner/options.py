"""The options that `plan` and `apply` share, the changes that they make to a spec, and the plan. No
torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from glitchrun.errors import UsageError
from glitchrun.ledger import RunRecord, current_attempt, existing_status, read_run
from glitchrun.ledger.step_store import StepStatus, step_status
from glitchrun.ledger.timings import read_timings
from glitchrun.plan.build import ANEW, Plan, build
from glitchrun.plan.step_keys import StepKey
from glitchrun.runner.resolved import Resolver
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Cell, Experiment, Spec


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    only: str | None = None
    """Name of the only cell to run; None for all."""
    fresh: bool = False
    """Whether to start new attempts."""
    redo: frozenset[str] = frozenset()
    """Ids of steps to measure again, with the steps that read from them."""
    until: Mapping[str, int] = field(default_factory=dict)
    """Verifications after which searches end early, by the id of the step."""
    limit: int | None = None
    """Largest number of items that each step examines, in a smoke run; None for no such limit."""
    keep_going: bool = False
    """Whether to continue with the next run after a failure."""

    @property
    def cell(self) -> str | None:
        """The cell that `only` names; its name in a smoke run is understood too."""
        if self.only is None or self.limit is None:
            return self.only
        return self.only.removesuffix(limited_name("", self.limit))


def adjusted(experiment: Experiment, options: Options) -> tuple[Experiment, list[str]]:
    """The experiment as changed by the options, and messages about the changes.

    Raises:
        UsageError: an option names a step that the spec does not have, or does not suit it.
    """
    _check_ids("--redo", sorted(options.redo), experiment)
    _check_ids("--until", list(options.until), experiment)
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"limit {options.limit}: give 1 or more")
    changed, notes = ended_early(experiment, options.until, options.cell)
    return (changed if options.limit is None else limited(changed, options.limit)), notes


def make_plan(
    experiment: Experiment,
    root: Path,
    options: Options,
    *,
    fetch: bool = True,
) -> Plan:
    """The plan of an experiment under these options.

    Args:
        experiment: The experiment, as `adjusted` returns it.
        root: Tracking root.
        options: Options of the command line.
        fetch: Whether to download models, see `plan.build.build`.

    Raises:
        GlitchrunError: a model or a recorded run cannot be read.
    """
    name = experiment.cells[0].spec.experiment
    # With --fresh, earlier attempts are not read: one of them may be damaged.
    anew = options.fresh or options.redo

    @cache
    def interrupted(key: str) -> RunRecord | None:
        return None if anew else _interrupted(root, name, key)

    return build(
        experiment,
        lambda key: ANEW if anew else existing_status(root, name, key),
        stored=lambda step, key: _stored(root, step, options, interrupted(key)),
        fetch=fetch,
        resolve=Resolver(),
        timings=read_timings(root),
    )


def _interrupted(root: Path, experiment: str, key: str) -> RunRecord | None:
    """The interrupted run that `apply` would resume; None if there is none."""
    attempt = current_attempt(root, experiment, key)
    if attempt is None or existing_status(root, experiment, key) not in ("KILLED", "FAILED"):
        return None
    return read_run(attempt)


def _stored(
    root: Path, key: StepKey, options: Options, resumed: RunRecord | None
) -> StepStatus | None:
    """The stored part of a step that the run would use. A resumed run continues with the attempts
    that it already uses, even if an earlier one is finished, as after `--fresh`."""
    if options.fresh or options.redo.intersection((key.id, *key.reads)):
        return None
    if resumed is None:
        return step_status(root, key.key, key.extent)
    used = next((step.attempt for step in resumed.steps if step.key == key.key), None)
    if used is None and resumed.anew.intersection((key.id, *key.reads)):
        return None
    return step_status(root, key.key, key.extent, used)


def _check_ids(option: str, ids: Sequence[str], experiment: Experiment) -> None:
    known = {step.id for cell in experiment.cells for step in cell.spec.steps}
    if unknown := [one for one in ids if one not in known]:
        names = ", ".join(sorted(known))
        raise UsageError(f"{option} {unknown[0]!r} names no step of this spec; it has: {names}")


_UNTIL = re.compile(r"(.+)=([1-9][0-9]{0,9})")


def read_until(texts: Sequence[str]) -> dict[str, int]:
    """The number of verifications by step id, from `STEP=N` each.

    Raises:
        UsageError: a text has another form.
    """
    found = {}
    for text in texts:
        match = _UNTIL.fullmatch(text)
        if match is None:
            raise UsageError(f"--until {text!r}: write it as STEP=N, such as mine=3000")
        found[match[1]] = int(match[2])
    return found


def ended_early(
    experiment: Experiment, until: Mapping[str, int], only: str | None
) -> tuple[Experiment, list[str]]:
    """The experiment with searches that end early, and messages about them.

    Args:
        experiment: The experiment.
        until: Verifications by the id of a search.
        only: Name of the only cell to change; None for all.

    Raises:
        UsageError: a step is no search, or cannot be ended early.
    """
    said: dict[str, None] = {}
    cells = []
    for cell in experiment.cells:
        changed = cell
        if only in (None, cell.name):
            for step_id, count in until.items():
                changed, told = _until(changed, step_id, count)
                said.update(dict.fromkeys(told))
        cells.append(changed)
    return replace(experiment, cells=tuple(cells)), list(said)


def _until(cell: Cell, step_id: str, asked: int) -> tuple[Cell, list[str]]:
    """The cell with the budget of one search, and what to say about it."""
    spec, option = cell.spec, f"--until {step_id}={asked}"
    place = [step.id for step in spec.steps].index(step_id)
    step = spec.steps[place]
    strategy = STRATEGIES[step.strategy]
    config = strategy.config_of(step)
    if not strategy.searches:
        raise UsageError(f"{option}: the step is no search; only a search can be ended early")
    count = strategy.stop_at(config, asked)
    if count is None:
        raise UsageError(
            f"{option}: this search cannot be ended early, because it verifies controls after its "
            f"last round, or its budget is no multiple of its batch size; --set steps.{step_id}."
            "budget=N starts it again with another budget"
        )
    if count < 1:
        raise UsageError(f"{option}: fewer than one round of the search")
    most = strategy.limits(config)[0]
    if most is not None and count >= most:
        return cell, [f"{step_id}: ends after {most:,} verifications anyway"]
    rounded = "" if count == asked else f", the last whole round before {asked:,}"
    said = f"{step_id}: ends after {count:,} verifications{rounded}"
    return replace(cell, spec=with_parameters(spec, place, {"budget": count}, option)), [said]


def limited(experiment: Experiment, limit: int) -> Experiment:
    """The experiment as a smoke run, in which every step examines at most `limit` items.

    The names of its cells say so. They are the names of its runs, which so stay apart from those of
    the whole experiment.
    """
    cells = (
        replace(cell, name=limited_name(cell.name, limit), spec=_limited(cell.spec, limit))
        for cell in experiment.cells
    )
    return replace(experiment, cells=tuple(cells))


def limited_name(name: str, limit: int) -> str:
    """The name of a cell as a smoke run."""
    return f"{name}, limit={limit}"


def _limited(spec: Spec, limit: int) -> Spec:
    option = f"--limit {limit}"
    # The command that repeats the run needs every other option that the spec was made with.
    others = {path: origin for path, origin in spec.origins.items() if origin.via}
    for place, step in enumerate(spec.steps):
        strategy = STRATEGIES[step.strategy]
        changes = strategy.limited(strategy.config_of(step), limit)
        if changes:
            spec = with_parameters(spec, place, changes, option)
    origin = replace(spec.origins["steps"], via=option)
    return replace(
        spec,
        limit=limit,
        document={**spec.document, "limit": limit},
        origins={**spec.origins, **others, "limit": origin},
    )


def with_parameters(spec: Spec, place: int, changes: Mapping[str, Any], option: str) -> Spec:
    """The spec with other parameters of one step.

    Args:
        spec: The spec.
        place: The step's place, from 0.
        changes: The new values by parameter.
        option: The option that changes them, for their origins.
    """
    step, path = spec.steps[place], f"steps[{place}]"
    steps = list(spec.steps)
    steps[place] = replace(step, params={**step.params, **changes})
    written = list(spec.document["steps"])
    written[place] = {**written[place], **changes}
    origins = dict(spec.origins)
    for name in changes:
        nearest = origins.get(f"{path}.{name}", origins[path])
        origins[f"{path}.{name}"] = replace(nearest, via=option)
    return replace(
        spec,
        steps=tuple(steps),
        document={**spec.document, "steps": written},
        origins=origins,
    )
