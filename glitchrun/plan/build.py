"""Builds the plan of an experiment: what each run would do, need and cost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from glitchrun import checkpoint as checkpoints
from glitchrun.checkpoint.fingerprint import fingerprint
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import ModelUnavailable
from glitchrun.ledger.record import status_word
from glitchrun.ledger.step_store import StepStatus
from glitchrun.ledger.timings import Timing
from glitchrun.plan.devices import device_memory
from glitchrun.plan.duration import Duration, duration
from glitchrun.plan.gates import PlannedGate
from glitchrun.plan.memory_estimate import MemoryEstimate
from glitchrun.plan.rates import ModelSize, Rates
from glitchrun.plan.residency import Residency, choose
from glitchrun.plan.step_keys import KEY_LENGTH, StepKey, step_keys
from glitchrun.plan.work import StepWork, ids_outside_vocabulary, step_work, workloads
from glitchrun.plan.workers import Staff, shared_steps, staff_of
from glitchrun.spec.digest import digest, digests_of, measures_machine
from glitchrun.spec.matrix_axes import canonical
from glitchrun.spec.types import Cell, Experiment, ModelSpec, Spec

Action = Literal["start", "resume", "skip", "blocked"]
StepAction = Literal["start", "resume", "reuse"]
ANEW = "ANEW"
"""Replaces a status if the user asks for a new attempt."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings of a run that depend on both the spec and the model's tokenizer or name."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """Settings that decide the results in addition to the spec and the model's contents, as plain
    data by name. Settings that follow from those two are not listed, so that keys do not change."""
    refusal: str | None = None
    """Why the run cannot start; None if it can."""
    scopes: Mapping[str, int] = field(default_factory=dict)
    """By step, the number of tokens in scope that it may examine, where that is known."""
    positions: tuple[int, int] | None = None
    """The most positions of a probe's shared prefix, and of what follows it; None where unknown."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of a run, and what `apply` will do about it."""

    key: StepKey
    action: StepAction
    origin: str = ""
    """The run that measured the step, or a part of it, first."""

    def to_json(self) -> dict[str, Any]:
        """The step as data, see `Plan.to_json`."""
        return {
            "id": self.key.id,
            "key": self.key.key,
            "action": self.action,
            "from": self.origin or None,
        }


Stored = Callable[[StepKey, str], StepStatus | None]
"""The stored part of a step that the run with this key may use; None if there is none."""


def _nothing_stored(key: StepKey, run: str) -> StepStatus | None:
    return None


Resolve = Callable[[Spec, Checkpoint, Header, str], Resolved]
"""Called once for each run, with the fingerprint of the model's contents. It is an argument of
`build` because it uses layers above the plan."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One cell of an experiment and what `apply` will do with it."""

    cell: Cell
    key: str
    """Hash, in 16 hex digits, of everything that can change the results: spec, contents of the
    model, token files. Empty for a hub model that is not on this machine yet."""
    action: Action
    reason: str
    """The reason for the action, in one sentence for the user."""
    estimate: MemoryEstimate | None
    """None for a hub model that is not on this machine yet."""
    work: tuple[StepWork, ...]
    """Bounds on the work of each step."""
    time: Duration | None
    """The likely time and its bound; None for a hub model that is not on this machine yet."""
    fingerprint: str
    """Fingerprint of the model's contents; empty if they are not known yet."""
    digests: Mapping[str, str]
    """Digests of the spec (results, numerics, cosmetic) and of what it resolves to (resolved)."""
    steps: tuple[PlannedStep, ...] = ()
    """Each step, and whether it is reused. Empty for a hub model that is not on this machine."""
    residency: Residency | None = None
    """Where the weights are; None for a hub model that is not on this machine yet."""
    times: Mapping[str, Duration] = field(default_factory=dict)
    """The duration with either residency."""
    gates: tuple[PlannedGate, ...] = ()

    @property
    def keys(self) -> tuple[StepKey, ...]:
        """The keys of the steps."""
        return tuple(step.key for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """The run as data, see `Plan.to_json`."""
        return {
            "name": self.cell.name,
            "key": self.key,
            "action": self.action,
            "reason": self.reason,
            "assignments": dict(self.cell.assignments),
            "memory": self.estimate.to_json() if self.estimate else None,
            "work": [step.to_json() for step in self.work],
            "seconds": list(self.time.bounds) if self.time else None,
            "time": self.time.to_json() if self.time else None,
            "fingerprint": self.fingerprint,
            "digests": dict(self.digests),
            "steps": [step.to_json() for step in self.steps],
            "residency": self.residency.to_json(self.times) if self.residency else None,
            "gates": [gate.to_json() for gate in self.gates],
            "workers": self.cell.spec.execution.workers,
            "shared": shared_steps(self.cell.spec) if self.cell.spec.execution.shares_steps else [],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Every run of an experiment in the order of execution."""

    experiment: str
    runs: tuple[PlannedRun, ...]

    @property
    def pending(self) -> tuple[PlannedRun, ...]:
        """The runs that would start or resume."""
        return tuple(run for run in self.runs if run.action in ("start", "resume"))

    @property
    def staff(self) -> Staff | None:
        """The workers that execute the runs; None if the process of `apply` does."""
        return staff_of(self.runs)

    @property
    def blocked(self) -> tuple[PlannedRun, ...]:
        """The runs that cannot start on this machine."""
        return tuple(run for run in self.runs if run.action == "blocked")

    def to_json(self) -> dict[str, Any]:
        """The plan as data, documented in docs/plan.md. Keys may be added, never removed.

        {"experiment", "runs": [{"name", "key", "action", "reason", "assignments", "memory",
        "work", "seconds", "time", "fingerprint", "digests", "steps": [{"id", "key", "action",
        "from"}], "residency", "gates": [{"metric", "op", "value", "min_n", "baseline",
        "baseline_value", "tolerance"}], "workers", "shared", "at_best"}], "execution"}
        """
        staff = self.staff
        runs = [one.to_json() | {"at_best": staff and staff.run_at_best(one)} for one in self.runs]
        execution = staff.to_json() if staff else None
        return {"experiment": self.experiment, "runs": runs, "execution": execution}


def _nothing(spec: Spec, checkpoint: Checkpoint, header: Header, fingerprint: str) -> Resolved:
    return Resolved()


def build(
    experiment: Experiment,
    existing: Callable[[str], str | None],
    *,
    stored: Stored = _nothing_stored,
    fetch: bool = True,
    resolve: Resolve = _nothing,
    timings: Sequence[Timing] = (),
) -> Plan:
    """Returns the plan of an experiment.

    Args:
        experiment: Each cell becomes a run, in order.
        existing: Status of the latest attempt with a given key (FINISHED, FAILED, ...), None if
            there is none, or `ANEW`.
        stored: What the store has of a step for the run with a given key.
        fetch: Whether to download hub models that are not on this machine. Otherwise such a run is
            planned with an empty key and no estimate.
        resolve: Returns the settings that a spec resolves to on its model.
        timings: How fast earlier runs on this machine were.

    Raises:
        ModelUnavailable: a model is missing or damaged; the message begins with the place of
            `model.path`.
    """
    models, runs = _Models(fetch), list[PlannedRun]()
    for cell in experiment.cells:
        contents = _contents(cell.spec, models)
        runs.append(_plan(cell, contents, existing, stored, resolve, runs, timings))
    return Plan(experiment.name, tuple(runs))


@dataclass(frozen=True, slots=True)
class _Contents:
    checkpoint: Checkpoint
    header: Header
    fingerprint: str


@dataclass(slots=True)
class _Models:
    """Headers and fingerprints of the models in a plan; each model is read once."""

    fetch: bool
    known: dict[tuple[str | bool | None, ...], _Contents | None] = field(default_factory=dict)

    def of(self, model: ModelSpec) -> _Contents | None:
        """The contents of a model; None if it is not on this machine."""
        key = (
            model.path,
            model.revision,
            model.allow_pickle,
            model.trust_remote_code,
            model.adapter,
        )
        if key not in self.known:
            found = checkpoints.resolve(model.path, model.revision)
            if self.fetch:
                found = checkpoints.fetch(
                    found, pickle=model.allow_pickle, code=model.trust_remote_code
                )
            self.known[key] = self._read(found, model) if found.path else None
        return self.known[key]

    def _read(self, checkpoint: Checkpoint, model: ModelSpec) -> _Contents:
        header = read_header(checkpoint, allow_pickle=model.allow_pickle, adapter=model.adapter)
        found = fingerprint(checkpoint, header, code=model.trust_remote_code)
        return _Contents(checkpoint, header, found)


def fingerprint_now(model: ModelSpec) -> str:
    """The current fingerprint of a model's files; empty for a hub model not on this machine.

    Raises:
        ModelUnavailable: the files are missing or damaged.
    """
    contents = _Models(fetch=False).of(model)
    return contents.fingerprint if contents else ""


def _contents(spec: Spec, models: _Models) -> _Contents | None:
    try:
        return models.of(spec.model)
    except ModelUnavailable as error:
        raise ModelUnavailable(f"{spec.origins['model.path']}: {error}") from error


def _plan(
    cell: Cell,
    contents: _Contents | None,
    existing: Callable[[str], str | None],
    stored: Stored,
    resolve: Resolve,
    before: Sequence[PlannedRun],
    timings: Sequence[Timing],
) -> PlannedRun:
    digests = digests_of(cell.spec)
    if contents is None:
        reason = f"{cell.spec.model.path} is not on this machine yet; `apply` downloads it"
        return PlannedRun(cell, "", "start", reason, None, (), None, "", digests)
    header, model = contents.header, cell.spec.model
    device = device_memory(model.device, model.max_memory)
    resolved = resolve(cell.spec, contents.checkpoint, header, contents.fingerprint)
    machine = _machine(cell.spec, device.device)
    facts = {
        **resolved.facts,
        **(machine if measures_machine(step.strategy for step in cell.spec.steps) else {}),
    }
    if facts:
        digests["resolved"] = digest(facts)
    key = _key(*filter(None, (digests["results"], contents.fingerprint, digests.get("resolved"))))
    if any(run.key == key for run in before):
        key = _key_of_twin(key, cell, existing)
    work = step_work(cell.spec, header.vocab, resolved.scopes)
    loads = workloads(cell.spec, work)
    residency = choose(_where_it_runs(cell.spec), header, device, loads, work, resolved.positions)
    memory = residency.estimate
    refusal = (
        ids_outside_vocabulary(cell.spec, header.vocab)
        or resolved.refusal
        or residency.refused(cell.spec)
    )
    keys = step_keys(cell.spec, contents.fingerprint, resolved.facts, machine)
    steps = tuple(_planned_step(step, key, stored, before) for step in keys)
    reuses = all(step.action == "reuse" for step in steps)
    is_judged = cell.spec.execution.is_here and not reuses  # else its memory is not known here
    action, reason = _action(existing(key), refusal, residency, is_judged, reuses)
    size = ModelSize(
        fingerprint=contents.fingerprint,
        quantization=model.quantization,
        kind=device.kind,
        parameters=memory.active_parameters,
        weight_bytes=memory.weight_bytes,
        vocab=header.vocab,
    )
    measured = {step.key.id for step in steps if step.action != "reuse"}
    left = [one for one in work if one.step in measured]
    times = {"resident": duration(header, residency.resident, left, Rates(size, timings))}
    if residency.stream is not None:
        times["streamed"] = residency.duration(times["resident"])
    time, found = times[residency.chosen], contents.fingerprint
    return PlannedRun(
        *(cell, key, action, reason, memory, work, time, found, digests, steps, residency, times)
    )


def _key_of_twin(key: str, cell: Cell, existing: Callable[[str], str | None]) -> str:
    """The key of a cell that an earlier one shares its `key` with. Cells that should give the same
    results (two devices, to compare them) are still separate runs: the user wrote a matrix to see
    each cell."""
    own, former = _key(key, canonical(dict(cell.assignments))), _key(key, cell.name)
    # Runs of earlier versions have the former key.
    return former if existing(own) is None and existing(former) is not None else own


def _where_it_runs(spec: Spec) -> Spec:
    """The spec with the residency that follows from where it runs: the memory of this machine says
    nothing about a cluster's."""
    if spec.execution.is_here or spec.model.residency != "auto":
        return spec
    return replace(spec, model=replace(spec.model, residency="resident"))


def _planned_step(
    key: StepKey, run_key: str, stored: Stored, before: Sequence[PlannedRun]
) -> PlannedStep:
    """A step that an earlier cell measures is reused from that cell."""
    for run in before:
        if run.action in ("start", "resume") and any(
            (key.key, key.extent) == (step.key.key, step.key.extent) for step in run.steps
        ):
            return PlannedStep(key, "reuse", run.cell.name)
    found = stored(key, run_key)
    if found is None:
        return PlannedStep(key, "start")
    return PlannedStep(key, "reuse" if found.state == "finished" else "resume", found.origin)


def _machine(spec: Spec, device: str) -> dict[str, Any]:
    """The device and memory limits. The CPU without limits is not listed, so that its keys do not
    change."""
    limits = dict(spec.model.max_memory or {})
    if device == "cpu" and not limits:
        return {}
    return {"device": device, **({"max_memory": limits} if limits else {})}


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:KEY_LENGTH]


def _action(
    status: str | None, refusal: str | None, residency: Residency, is_judged: bool, reuses: bool
) -> tuple[Action, str]:
    if status == "FINISHED":
        return "skip", "already finished; nothing that affects the results has changed"
    if refusal:
        return "blocked", refusal
    if residency.estimate.verdict == "no" and is_judged:
        return "blocked", residency.why_blocked()
    if status in (None, ANEW) and reuses:
        return "start", "every step is finished; the model is not loaded"
    if status == ANEW:
        return "start", "a new attempt, as the options ask"
    if status is None:
        return "start", "never run"
    if status == "DAMAGED":
        return (
            "resume",
            "the ledger of the latest attempt is damaged; apply continues from its intact part",
        )
    return "resume", f"the latest attempt is {status_word(status)}"
