"""The resolved spec as frozen dataclasses; `Spec.origins` locates each value in its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glitchrun.spec.probes import Probe


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    via: str | None = None
    """Where the value came from if not from the spec file itself: `--set model.device=cpu`, a
    fragment, a matrix axis, an environment variable."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place} ({self.via})" if self.via else place


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to load, at which precision, on which device."""

    path: str
    """A file or folder, a hub id, or `package:NAME/FILE` (see `checkpoint.resolve`). Relative paths
    have been joined to the folder of the file that declares them."""
    revision: str | None = None
    quantization: str = "none"
    device: str = "auto"
    max_memory: Mapping[str, str | int] | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    residency: str = "auto"
    """Where the weights are during the run: `resident` in memory, or `streamed` from the disk layer
    by layer; `auto` streams a model that does not fit."""
    keep_quantized: bool = False
    """Whether int8 or int4 weights of a streamed model are kept in the cache folder."""
    adapter: str | None = None
    """A folder in PEFT's format to merge into the weights, absolute like `path`. `none` ignores an
    adapter in the folder of the weights; with None (the default) such an adapter is refused."""


@dataclass(frozen=True, slots=True)
class InlineTemplate:
    """A prompt format written in the spec. `user` contains `{user}`, `system` contains
    `{system}`."""

    user: str
    system: str | None = None
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the experiment: a strategy and its parameters."""

    id: str
    strategy: str
    params: Mapping[str, Any]
    """The strategy's parameters as written, without `id` and `strategy`; relative paths are joined.
    Defaults are in the strategy's Config."""
    probes: Mapping[str, Probe] = field(default_factory=dict)
    """The probes that the spec defines, as far as the step names them."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits from which verdicts are derived."""

    asr: float = 0.5
    """Attack success rate, 0 to 1, at or above which `validate` confirms a token; 0 requires one
    failure."""
    probability: float = 1.0
    """A token that fails its probes is a glitch token only below this probability."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition on a metric that `apply` checks at the end: `metric op value`, or `metric op` its
    value in an earlier run."""

    metric: str
    op: str
    """`<`, `<=`, `>`, `>=`, `==` or `!=`."""
    value: float | None = None
    """None with a `baseline`."""
    min_n: int = 0
    """Smallest number of items that the metric must be based on; with fewer the gate is
    inconclusive."""
    baseline: str | None = None
    """The earlier run, as commands take it, or a study: then its cell of the same name."""
    tolerance: float = 0.0
    """How far the metric may be on the wrong side of the baseline's value, as a share of it."""


@dataclass(frozen=True, slots=True)
class TokenScope:
    """The part of the vocabulary that the experiment may examine."""

    categories: tuple[str, ...] = ("normal",)
    exclude: tuple[str, ...] | None = None
    """Regular expressions; a token whose text matches one of them anywhere is excluded."""
    unused: tuple[int, ...] | None = None
    """Ids of the reference rows of the indicators; None to find them."""


@dataclass(frozen=True, slots=True)
class Execution:
    """Which processes execute the runs; it changes no result."""

    engine: str = "local"
    """`local`, or `ray` for workers that share the tokens of a step."""
    workers: int = 1
    """Processes that each hold the model."""
    address: str = "local"
    """The Ray cluster: `local`, `auto` or `ray://HOST:PORT`."""
    cpus_per_worker: int | None = None
    """CPU cores and threads of a worker; None for the default."""
    gpus_per_worker: float | None = None
    """GPUs of a worker; None for the default."""

    @property
    def uses_ray(self) -> bool:
        """Whether workers execute the runs, and not this process."""
        return self.engine == "ray" or self.workers > 1

    @property
    def shares_steps(self) -> bool:
        """Whether workers share the tokens of a step."""
        return self.engine == "ray" and self.workers > 1

    @property
    def is_here(self) -> bool:
        """Whether all workers are on this machine."""
        return self.engine == "local" or self.address == "local"


@dataclass(frozen=True, slots=True)
class Tracking:
    """The MLflow store and experiment; None for the defaults."""

    uri: str | None = None
    experiment: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """One fully resolved run: one cell of the matrix, or the whole file without a matrix."""

    name: str
    model: ModelSpec
    steps: tuple[Step, ...]
    description: str = ""
    tags: Mapping[str, str] = None  # type: ignore[assignment]
    template: str | InlineTemplate = "auto"
    system: str | None = None
    template_variables: Mapping[str, Any] | None = None
    """Variables passed to the tokenizer's own chat template besides the conversation."""
    seed: int = 0
    tokens: TokenScope = TokenScope()
    thresholds: Thresholds = Thresholds()
    gates: tuple[Gate, ...] = ()
    execution: Execution = Execution()
    arithmetic: str = "auto"
    """`execution.arithmetic`: `auto`, `float32` or `weights`."""
    tracking: Tracking = Tracking()
    document: Mapping[str, Any] = None  # type: ignore[assignment]
    """The resolved document as plain data, secrets replaced by `<redacted>`: the content of
    spec.resolved.yaml."""
    limit: int | None = None
    """In a smoke run, the most items that each step examines; see `apply --limit`."""
    origins: Mapping[str, Origin] = None  # type: ignore[assignment]
    """Origin of each value by its path, such as `thresholds.asr` or `steps[0].k`."""

    @property
    def experiment(self) -> str:
        """The run's MLflow experiment: `tracking.experiment` if given, else the spec's name."""
        return self.tracking.experiment or self.name


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of an experiment: its spec and the matrix values that it was made with."""

    name: str
    """Readable and unique in the experiment: `quantization=int4, seed=2`; without a matrix the
    experiment's own name."""
    assignments: Mapping[str, Any]
    """Value of each matrix axis by the axis' path."""
    spec: Spec


@dataclass(frozen=True, slots=True)
class Experiment:
    """A loaded spec file."""

    path: Path
    text: str
    """The file as written: the content of spec.yaml in a run's folder."""
    name: str
    cells: tuple[Cell, ...]
