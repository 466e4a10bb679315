"""A run as read back from its folder. MLflow, the report and `status` are made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

from glitchrun.events import Batch


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """The identity of a run. Written to run.json when the run is created, and never changed there;
    cell.json has the name, parent and assignments of a run that was added to a study later."""

    experiment: str
    """The MLflow experiment: tracking.experiment if given, else metadata.name."""
    name: str
    """Readable name of the run, `Cell.name`."""
    key: str
    """Hex digest of everything that can change the results: resolved spec, model contents."""
    attempt: int
    """Counted from 1; `--fresh` starts the next one."""
    parent: str | None
    """Key shared by the cells of one matrix; None for a single run."""
    assignments: Mapping[str, Any]
    spec_path: str
    digests: Mapping[str, str]
    """results, numerics and cosmetic digests of the spec; model fingerprint."""
    tags: Mapping[str, str]
    description: str
    tracking_uri: str
    """The MLflow store that the run is delivered to, without credentials."""
    ledger: str = ""
    """Random id of this ledger, because another project may have a run with the same key. Empty in
    records of earlier versions."""

    @property
    def sweep(self) -> str:
        """The name of the matrix' parent run in MLflow: `sweep over quantization × seed`."""
        axes = " × ".join(name.rpartition(".")[2] for name in self.assignments)
        return f"sweep over {axes}" if axes else "sweep"


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a step measured; `n` is the number of items it is based on."""

    value: float | None
    n: int | None = None


_PLAIN_GATE = ("metric", "op", "value", "observed", "n", "outcome", "origin")


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate of the spec, with the observed value and the outcome."""

    metric: str
    op: str
    value: float | None
    """The limit; None if the metric has no value in the baseline."""
    observed: float | None
    n: int | None
    outcome: str
    """pass, fail or inconclusive."""
    origin: str
    """file:line:column of the gate."""
    baseline: str | None = None
    """The run that the metric is compared with, `EXPERIMENT · NAME KEY#N`, from which the limit
    follows; None without one."""
    baseline_value: float | None = None
    tolerance: float | None = None
    """The share of the baseline's value that the limit allows."""
    test: str | None = None
    """The paired test of the verdicts behind the metric, in sentences; None if there are none."""
    p: float | None = None
    """Its p value."""
    p_adjusted: float | None = None
    """The same, adjusted by Benjamini and Hochberg over the gates of the run."""

    def to_json(self) -> dict[str, Any]:
        """The result as data. The keys about a baseline appear only with one, so that earlier
        versions can read the others."""
        found = asdict(self)
        return found if self.baseline else {name: found[name] for name in _PLAIN_GATE}


@dataclass(frozen=True, slots=True)
class TimedBatch:
    """A batch and when it became durable, in milliseconds since the epoch."""

    at: int
    batch: Batch


class LaterBatches(Sequence[TimedBatch]):
    """Batches that are read when one of them is requested."""

    def __init__(self, read: Callable[[], Sequence[TimedBatch]]) -> None:
        self._read = read
        self._found: Sequence[TimedBatch] | None = None

    def _batches(self) -> Sequence[TimedBatch]:
        if self._found is None:
            self._found = self._read()
        return self._found

    @overload
    def __getitem__(self, place: int) -> TimedBatch: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[TimedBatch]: ...
    def __getitem__(self, place: int | slice) -> TimedBatch | Sequence[TimedBatch]:
        return self._batches()[place]

    def __len__(self) -> int:
        return len(self._batches())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


Progress = tuple[str, int, int | None]
"""A stage, its finished items, and their total if it is known."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step of a run: its configuration, batches and metrics."""

    id: str
    strategy: str
    params: Mapping[str, Any]
    started_at: int | None = None
    ended_at: int | None = None
    batches: Sequence[TimedBatch] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Without the step's id: `glitch`, `verified`, `tokens_per_second`."""
    elapsed: float | None = None
    """Wall time in seconds from the step's start to its last entry, summed over the sessions that
    worked on it, also those of other runs. None if the record was not read from a ledger."""
    key: str = ""
    """The step key; empty in runs of earlier versions, whose own ledger contains the facts."""
    attempt: int = 0
    """The attempt at the step that the run uses."""
    reused: bool = False
    """Whether all of it had been measured before, for another run."""
    origin: str = ""
    """The run for which it was measured first, as `EXPERIMENT · NAME KEY#N`."""
    spent: float | None = None
    """The part of `elapsed` that this run spent; None if all of it."""
    folder: Path | None = None
    """Folder of the attempt at the step; None in runs of earlier versions."""

    ended: Progress | None = None
    """Where the step ended, if it is known without the batches."""

    @property
    def progress(self) -> Progress | None:
        """The stage of the last batch; None before the first."""
        if self.ended is not None or not self.batches:
            return self.ended
        last = self.batches[-1].batch
        return last.stage, last.done, last.total

    @property
    def seconds(self) -> float:
        """Wall time of the step in seconds; the sum over its batches if it is not known."""
        if self.elapsed is not None:
            return self.elapsed
        return sum(timed.batch.seconds + timed.batch.search_seconds for timed in self.batches)

    @property
    def examined(self) -> int | None:
        """Distinct tokens that were verified or sampled, controls not counted; None if the step has
        no facts about tokens."""
        ids = {fact.token.id for timed in self.batches for fact in timed.batch.token_facts}
        return len(ids) if ids or any(timed.batch.screened for timed in self.batches) else None

    @property
    def stages(self) -> dict[str, tuple[int, int | None]]:
        """Finished items and total of each stage so far, by name; in records of earlier versions
        those of the whole step, under an empty name."""
        return {one.batch.stage: (one.batch.done, one.batch.total) for one in self.batches}

    @property
    def own_seconds(self) -> float:
        """The part of `seconds` that this run spent; the rest was spent by the runs whose facts it
        reuses."""
        return self.seconds if self.spent is None else min(self.spent, self.seconds)

    @property
    def state(self) -> str:
        """`finished`, `reused from RUN`, `stopped` or `not started`."""
        if self.finished:
            return f"reused from {self.origin}" if self.reused else "finished"
        return "stopped" if self.started_at else "not started"

    @property
    def finished(self) -> bool:
        """Whether the step is complete."""
        return self.ended_at is not None


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The model as loaded. Byte counts are of weights unless stated otherwise."""

    load_seconds: float
    """0 if an earlier run of the same `apply` loaded the model; its time counts there."""
    bytes: int
    peak_bytes: int
    device: str
    dtype: str
    quantization: str
    architecture: str
    vocabulary_size: int
    census: Mapping[str, int]
    """Bytes by dtype, such as {"int4": 73_000_000, "bfloat16": 2_000_000}."""
    unquantized: tuple[str, ...]
    """Names of large weights that were not quantized; empty without quantization."""
    template: str
    """Name of the template that was used."""
    template_rule: str
    """The detection rule that chose it."""
    engine: str = ""
    """The forward pass that ran the model, and the reason; empty in older records."""
    tokenizer: str = ""
    """The rule by which a GGUF file's tokenizer was rebuilt, and its source; else empty."""
    excluded: int = 0
    """Number of tokens in the selected categories that `tokens.exclude` left out."""
    categories: Mapping[str, int] = field(default_factory=dict)
    """Vocabulary rows by category; empty if no step needed them."""
    beyond_training: tuple[str, ...] = ()
    """A warning for each step whose texts are longer than the model was trained for."""
    residency: str = "resident"
    """Where the weights were: `resident` in memory, or `streamed` from the disk."""
    bytes_read: int = 0
    """Bytes of weights that a streamed model read from the disk so far in this process."""


STATUS_WORDS = {"KILLED": "INTERRUPTED"}
"""Statuses that people see under another name. KILLED is MLflow's word for a run that a signal
ended; it would mislead about a run that Ctrl-C stopped cleanly and `apply` can resume."""


def status_word(status: str) -> str:
    """A run's status as shown to people. Records, JSON and MLflow use the status itself."""
    return STATUS_WORDS.get(status, status)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that is known of a run."""

    folder: Path
    """The attempt's folder."""
    identity: RunIdentity
    status: str
    """RUNNING, FINISHED, FAILED or KILLED; DAMAGED if the ledger was altered. The record is then
    that of the intact part."""
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
    """Counters by name, such as tokens not presented intact or rechecked in float32."""
    delivered_to: Mapping[str, str] = field(default_factory=dict)
    """MLflow's `run_id` and `experiment_id` after delivery, `ending` once it is complete. For
    a run that was added to a study later: the key of this `study` and the `cell`'s name there."""
    tagged: Mapping[str, str] = field(default_factory=dict)
    """The tags that `glitchrun tag` set; an empty value removes a tag, also one of the spec's."""
    error: str | None = None
    """Why the run failed, in one line."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Source of each value of the spec, `file:line:column`, by its path."""
    damage: str | None = None
    """The damage to the ledger with its line and the remedy; None for an intact ledger."""
    repairs: tuple[str, ...] = ()
    """Damage that was found when the run was resumed; the lost part was computed again."""
    loaded_in: float | None = None
    """Seconds of loading the model, summed over all sessions; None if the record was not read from
    a ledger."""

    anew: frozenset[str] = frozenset()
    """The steps of which it reuses nothing, because `--fresh` or `--redo` began it."""
    paused_for: float = 0.0
    """Seconds between its sessions, in which nothing worked on the run."""

    @property
    def loading_seconds(self) -> float:
        """Seconds that this run spent on loading the model, over all its sessions."""
        if self.loaded_in is not None:
            return self.loaded_in
        return self.model.load_seconds if self.model else 0.0

    @property
    def artifacts(self) -> Path:
        """The folder of the artifacts."""
        return self.folder / "artifacts"

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the spec, and those that were set later."""
        found = {name: str(text) for name, text in self.identity.tags.items()} | dict(self.tagged)
        return {name: text for name, text in found.items() if text or name not in self.tagged}

    @property
    def ending(self) -> str:
        """How and when the run ended; a complete delivery is marked with it."""
        return ending(self.status, self.ended_at)

    @property
    def delivered(self) -> bool:
        """Whether MLflow has all of the ended run, including its files, under the run's study."""
        own = {"study": self.identity.parent or "", "cell": self.identity.name}
        return (
            self.ended_at is not None
            and self.delivered_to.get("ending") == self.ending
            and all(self.delivered_to.get(key, value) == value for key, value in own.items())
        )

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric by its full name, such as `mine/glitch` or `model/bytes`."""
        flat = {
            f"{step.id}/{name}": metric
            for step in self.steps
            for name, metric in step.metrics.items()
        }
        if self.model:
            flat["model/load_seconds"] = Metric(self.loading_seconds)
            flat["model/bytes"] = Metric(self.model.bytes)
            flat["model/peak_bytes"] = Metric(self.model.peak_bytes)
        return flat


def ending(status: str, ended_at: int | None) -> str:
    """A status and a time in milliseconds since the epoch as one text: `FINISHED 1767225600000`."""
    return f"{status} {ended_at}"


def model_from_json(data: Mapping[str, Any]) -> ModelRecord:
    """The record that `dataclasses.asdict` and JSON wrote as `data`.

    Raises:
        KeyError: a field is missing.
        TypeError: a field is missing or unknown.
    """
    known = dict(data)
    known["unquantized"] = tuple(known["unquantized"])
    known["beyond_training"] = tuple(known.get("beyond_training", ()))
    return ModelRecord(**known)
