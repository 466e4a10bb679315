"""Changes of a spec for one run by options of `apply`: `--until STEP=N` and `--limit N`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from glitchrun.errors import UsageError
from glitchrun.spec.strategy import STRATEGIES
from glitchrun.spec.types import Cell, Experiment, Spec

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
