"""From an experiment to the list of its runs: what each would do, need and cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from glitchrun import checkpoint as checkpoints
from glitchrun.checkpoint.fingerprint import fingerprint
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import ModelUnavailable
from glitchrun.ledger.record import status_word
from glitchrun.plan import duration
from glitchrun.plan.devices import device_memory
from glitchrun.plan.memory_estimate import MemoryEstimate, estimate
from glitchrun.plan.work import StepWork, step_work, workloads
from glitchrun.spec.digest import MEASURING, cosmetic_digest, numerics_digest, results_digest
from glitchrun.spec.token_ids import token_ids
from glitchrun.spec.types import Cell, Experiment, ModelSpec, Spec

KEY_LENGTH = 16
_NAMED = 5
"""Token ids that a message names at most."""
Action = Literal["start", "resume", "skip", "blocked"]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings of a spec that depend on the model's tokenizer or name."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """What decides results beside the spec and the model's contents, as plain data by name. A fact
    that follows from those two is left out, so that keys stay as they are."""
    refusal: str | None = None
    """Why the run cannot go ahead; None where it can."""


Resolve = Callable[[Spec, Checkpoint, Header], Resolved]
"""Called once for each run. The plan takes it as an argument because it uses higher layers."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One cell of an experiment, and what `apply` will do with it."""

    cell: Cell
    key: str
    """16 hex digits over everything that can change the results: spec, model contents, files of
    tokens. Empty for a hub model that is not on this machine yet: its contents are not known."""
    action: Action
    reason: str
    """Why this action, in one sentence for a person."""
    estimate: MemoryEstimate | None
    """None only for a hub model that is not on this machine yet."""
    work: tuple[StepWork, ...]
    seconds: tuple[float, float] | None
    """(at best, at worst) after loading: orders of magnitude."""
    fingerprint: str
    """Of the model's contents; empty where they are not known yet."""
    digests: Mapping[str, str]
    """results, numerics and cosmetic digests of the spec."""

    def to_json(self) -> dict[str, Any]:
        """See `Plan.to_json`."""
        return {
            "name": self.cell.name,
            "key": self.key,
            "action": self.action,
            "reason": self.reason,
            "assignments": dict(self.cell.assignments),
            "memory": self.estimate.to_json() if self.estimate else None,
            "work": [step.to_json() for step in self.work],
            "seconds": list(self.seconds) if self.seconds else None,
            "fingerprint": self.fingerprint,
            "digests": dict(self.digests),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Every run of an experiment, in the order in which they are executed."""

    experiment: str
    runs: tuple[PlannedRun, ...]

    @property
    def pending(self) -> tuple[PlannedRun, ...]:
        """The runs that would start or resume."""
        return tuple(run for run in self.runs if run.action in ("start", "resume"))

    @property
    def blocked(self) -> tuple[PlannedRun, ...]:
        """The runs that cannot go ahead on this machine."""
        return tuple(run for run in self.runs if run.action == "blocked")

    def to_json(self) -> dict[str, Any]:
        """The plan as data, documented in docs/plan.md; keys are only ever added.

        {"experiment", "runs": [{"name", "key", "action", "reason", "assignments", "memory",
        "work", "seconds", "fingerprint", "digests"}]}
        """
        return {"experiment": self.experiment, "runs": [run.to_json() for run in self.runs]}


def _nothing(spec: Spec, checkpoint: Checkpoint, header: Header) -> Resolved:
    return Resolved()


def build(
    experiment: Experiment,
    existing: Callable[[str], str | None],
    *,
    fetch: bool = True,
    resolve: Resolve = _nothing,
) -> Plan:
    """The plan of an experiment.

    Args:
        experiment: Its cells become the runs, in order.
        existing: Status of the latest attempt with a key (FINISHED, FAILED, ...), None for none.
        fetch: Download hub models that are not on this machine; without, such a run is planned
            with an empty key and no estimate.
        resolve: The settings that a spec resolves to on its model: see `runner.resolved`.

    Raises:
        ModelUnavailable: a model is missing or unsound; the message begins with the place of
            `model.path`.
    """
    models = _Models(fetch)
    runs: list[PlannedRun] = []
    for cell in experiment.cells:
        taken = {run.key for run in runs}
        runs.append(_plan(cell, _contents(cell.spec, models), existing, resolve, taken))
    return Plan(experiment.name, tuple(runs))


@dataclass(frozen=True, slots=True)
class _Contents:
    checkpoint: Checkpoint
    header: Header
    fingerprint: str


@dataclass(slots=True)
class _Models:
    """Headers and fingerprints of the models that a plan names, each read once."""

    fetch: bool
    known: dict[tuple[str | bool | None, ...], _Contents | None] = field(default_factory=dict)

    def of(self, model: ModelSpec) -> _Contents | None:
        """The contents of a model; None for one that is not on this machine."""
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
    """The fingerprint of a model's files as they are now; empty for a hub model that is not here.

    Raises ModelUnavailable where they are missing or unsound.
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
    resolve: Resolve,
    taken: set[str],
) -> PlannedRun:
    digests = _digests(cell.spec)
    if contents is None:
        reason = f"{cell.spec.model.path} is not on this machine yet; `apply` downloads it"
        return PlannedRun(cell, "", "start", reason, None, (), None, "", digests)
    header, model = contents.header, cell.spec.model
    device = device_memory(model.device, model.max_memory)
    resolved = resolve(cell.spec, contents.checkpoint, header)
    facts = {**resolved.facts, **_measured_on(cell.spec, device.device)}
    if facts:
        digests["resolved"] = _facts_digest(facts)
    key = _key(*filter(None, (digests["results"], contents.fingerprint, digests.get("resolved"))))
    if key in taken:
        # Cells that ought to give the same results, such as devices to compare, are still runs of
        # their own: a matrix is written to see each of its cells.
        key = _key(key, cell.name)
    memory = estimate(header, model.quantization, workloads(cell.spec), device)
    work = step_work(cell.spec, header.vocab)
    refusal = _outside(cell.spec, header.vocab) or resolved.refusal
    action, reason = _action(existing(key), refusal, memory)
    seconds = duration.seconds(header, memory, work)
    return PlannedRun(
        cell, key, action, reason, memory, work, seconds, contents.fingerprint, digests
    )


def _measured_on(spec: Spec, device: str) -> dict[str, Any]:
    """Where a run that measures the machine runs, unless it is the CPU without limits: elsewhere
    that is numerics, here it is the result."""
    limits = dict(spec.model.max_memory or {})
    if not any(step.strategy in MEASURING for step in spec.steps) or (
        device == "cpu" and not limits
    ):
        return {}
    return {"device": device, **({"max_memory": limits} if limits else {})}


def _facts_digest(facts: Mapping[str, Any]) -> str:
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digests(spec: Spec) -> dict[str, str]:
    return {
        "results": results_digest(spec),
        "numerics": numerics_digest(spec),
        "cosmetic": cosmetic_digest(spec),
    }


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:KEY_LENGTH]


def _action(status: str | None, outside: str | None, memory: MemoryEstimate) -> tuple[Action, str]:
    if status == "FINISHED":
        return "skip", "finished before; nothing that changes results is different"
    if outside:
        return "blocked", outside
    if memory.verdict == "no":
        return "blocked", _why_blocked(memory)
    if status is None:
        return "start", "never run"
    if status == "DAMAGED":
        return (
            "resume",
            "the latest attempt's ledger is damaged; apply continues from its intact part",
        )
    return "resume", f"the latest attempt is {status_word(status)}"


def _outside(spec: Spec, vocab: int) -> str | None:
    """Why the spec's token ids do not suit a vocabulary of `vocab` entries; None where they do."""
    ids = [
        f"{token_id} ({spec.origins[path]})"
        for path, token_id in token_ids(spec)
        if token_id >= vocab
    ]
    if not ids:
        return None
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return (
        f"token ids outside the model's vocabulary, 0 to {vocab - 1}: {', '.join(ids[:_NAMED])}"
        f"{more}; correct them, or set model.path to the model that they are of"
    )


def _why_blocked(memory: MemoryEstimate) -> str:
    if not memory.free_bytes:
        if memory.memory_source.startswith("max_memory"):
            return f"model.{memory.memory_source}"
        return f"{memory.memory_source}; set model.device to one that is here, or auto"
    need, free = memory.total_bytes / 1e9, memory.free_bytes / 1e9
    remedy = (
        f"lower batch_size of step {memory.step!r} to {memory.largest_batch}"
        if memory.largest_batch
        else "quantize further (model.quantization: int4), free memory, or use a larger device"
    )
    return f"needs {need:.1f} GB of {memory.device}, {free:.1f} GB are free: {remedy}"
