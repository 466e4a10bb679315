"""The options that `plan` and `apply` share, and the plan that follows from them. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from glitchrun.errors import UsageError
from glitchrun.ledger import RunRecord, current_attempt, existing_status, read_run
from glitchrun.ledger.step_store import StepStatus, step_status
from glitchrun.ledger.timings import read_timings
from glitchrun.plan.build import ANEW, Plan, build
from glitchrun.plan.step_keys import StepKey
from glitchrun.runner.resolved import Resolver
from glitchrun.spec.adjusting import ended_early, limited, limited_name
from glitchrun.spec.types import Experiment


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
