"""A run as read back from its folder: what MLflow, the report and `status` are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glitchrun.events import Batch


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What names a run. Written to run.json when the run is created; never changes after."""

    experiment: str
    """metadata.name, or tracking.experiment where that is given: the MLflow experiment."""
    name: str
    """Readable name of the run (`Cell.name`)."""
    key: str
    """Hex digest of everything that can change the results: resolved spec, model contents."""
    attempt: int
    """From 1; `--fresh` starts the next one."""
    parent: str | None
    """Key shared by the cells of one matrix; None for a single run."""
    assignments: Mapping[str, Any]
    spec_path: str
    digests: Mapping[str, str]
    """results, numerics and cosmetic digests of the spec; model fingerprint."""
    tags: Mapping[str, str]
    description: str
    tracking_uri: str
    """Where the run is to be delivered; credentials in it are kept out of every log."""
    ledger: str = ""
    """Random id of this ledger: another project may have a run with the same key. Empty in records
    of earlier versions."""


@dataclass(frozen=True, slots=True)
class Metric:
    value: float | None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    metric: str
    op: str
    value: float
    observed: float | None
    n: int | None
    outcome: str
    """pass, fail or inconclusive."""
    origin: str
    """file:line:column of the gate."""


@dataclass(frozen=True, slots=True)
class TimedBatch:
    """A batch and when it became durable, in milliseconds since the epoch."""

    at: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class StepRecord:
    id: str
    strategy: str
    params: Mapping[str, Any]
    started_at: int | None = None
    ended_at: int | None = None
    batches: tuple[TimedBatch, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Without the step's id: `glitch`, `verified`, `tokens_per_second`."""
    elapsed: float | None = None
    """Wall time in seconds from the step's start to its last entry, over every session that worked
    on it: loading its prompts, screening, searching, verifying. None where no ledger says so."""

    @property
    def seconds(self) -> float:
        """Wall time of the step; what its batches add up to where it is not known."""
        if self.elapsed is not None:
            return self.elapsed
        return sum(timed.batch.seconds + timed.batch.search_seconds for timed in self.batches)

    @property
    def finished(self) -> bool:
        return self.ended_at is not None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What loading the model gave. Byte counts are of weights unless named otherwise."""

    load_seconds: float
    """0 where an earlier run of the same `apply` had loaded the model: it is charged there."""
    bytes: int
    peak_bytes: int
    device: str
    dtype: str
    quantization: str
    architecture: str
    vocabulary_size: int
    census: Mapping[str, int]
    """Bytes held by dtype, such as {"int4": 73_000_000, "bfloat16": 2_000_000}."""
    unquantized: tuple[str, ...]
    """Names of large weights that quantization left alone; empty where none was asked for."""
    template: str
    """Name of the template in force."""
    template_rule: str
    """The detection rule that chose it."""
    engine: str = ""
    """Which forward pass ran the model, and why; empty in records older than the choice."""
    tokenizer: str = ""
    """By which split a GGUF file's tokenizer was rebuilt, and who named it; else empty."""
    excluded: int = 0
    """Tokens of the categories in scope that `tokens.exclude` left out."""
    categories: Mapping[str, int] = field(default_factory=dict)
    """Rows of the vocabulary by category; empty where no step needed to know them."""
    beyond_training: tuple[str, ...] = ()
    """A note for each step whose texts are longer than the model was trained for."""


STATUS_WORDS = {"KILLED": "INTERRUPTED"}
"""Statuses as shown to people. KILLED is MLflow's word for a run that a signal ended; it
is wrong for a run that Ctrl-C stopped cleanly and `apply` can resume."""


def status_word(status: str) -> str:
    """A run's status as shown to people; records, JSON and MLflow keep the status itself."""
    return STATUS_WORDS.get(status, status)


@dataclass(frozen=True, slots=True)
class RunRecord:
    folder: Path
    """The attempt's folder; artifacts are in `folder / "artifacts"`."""
    identity: RunIdentity
    status: str
    """RUNNING, FINISHED, FAILED or KILLED; DAMAGED where the ledger is not what was written: the
    rest of the record is then what its good part adds up to."""
    started_at: int
    """Milliseconds since the epoch."""
    ended_at: int | None
    spec: Mapping[str, Any]
    """The resolved document, secrets redacted."""
    steps: tuple[StepRecord, ...]
    model: ModelRecord | None
    plan: Mapping[str, Any]
    """The plan's estimate for this run, as `plan -o json` gives it."""
    environment: Mapping[str, Any]
    """Versions, platform, devices, git commit."""
    gates: tuple[GateResult, ...]
    notes: Mapping[str, int] = field(default_factory=dict)
    """What was counted and must be shown: not presented intact, decided again in float32, ..."""
    delivered_to: Mapping[str, str] = field(default_factory=dict)
    """MLflow ids once it is there (`run_id`, `experiment_id`), and `ending` once all of it is."""
    error: str | None = None
    """Why the run failed, in one line."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each value of the spec was written, `file:line:column` by its path."""
    damage: str | None = None
    """The damage to the ledger, its line and the remedy; None where it is intact."""
    repairs: tuple[str, ...] = ()
    """Damage found when the run was resumed: what was lost then has been computed again."""
    loaded_in: float | None = None
    """Seconds spent on loading the model, over every session; None where no ledger says so."""

    @property
    def loading_seconds(self) -> float:
        """Time that loading the model took of this run, each time it was loaded for it."""
        if self.loaded_in is not None:
            return self.loaded_in
        return self.model.load_seconds if self.model else 0.0

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    @property
    def ending(self) -> str:
        """How and when the run ended: what a complete delivery is stamped with."""
        return ending(self.status, self.ended_at)

    @property
    def delivered(self) -> bool:
        """Whether MLflow has the run as it ended, files included."""
        return self.ended_at is not None and self.delivered_to.get("ending") == self.ending

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric under its full name: `mine/glitch`, `model/bytes`."""
        flat = {
            f"{step.id}/{name}": metric
            for step in self.steps
            for name, metric in step.metrics.items()
        }
        if self.model:
            flat["model/load_seconds"] = Metric(self.model.load_seconds)
            flat["model/bytes"] = Metric(self.model.bytes)
            flat["model/peak_bytes"] = Metric(self.model.peak_bytes)
        return flat


def ending(status: str, ended_at: int | None) -> str:
    """How and when a run ended, in one word and a number."""
    return f"{status} {ended_at}"
