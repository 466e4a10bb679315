"""The resolved spec: frozen values, each of which knows where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written. Lines and columns count from 1."""

    file: str
    line: int
    column: int
    via: str | None = None
    """How it got into the spec when not from its own file: `--set model.device=cpu`, a fragment,
    a matrix cell."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place} ({self.via})" if self.via else place


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which weights, in which numbers, where."""

    path: str
    """As `checkpoint.resolve` takes it. A relative path is already joined to the folder of the file
    that declares it; hub ids and `package:NAME/FILE` stand as written."""
    revision: str | None = None
    quantization: str = "none"
    device: str = "auto"
    max_memory: Mapping[str, str | int] | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    adapter: str | None = None
    """A folder in PEFT's format that is merged into the weights, joined like `path`; `none` leaves
    out one that lies beside the weights, None knows of none."""


@dataclass(frozen=True, slots=True)
class InlineTemplate:
    """A prompt format written in the spec. `user` holds `{user}`, `system` holds `{system}`."""

    user: str
    system: str | None = None
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    id: str
    strategy: str
    params: Mapping[str, Any]
    """The strategy's own parameters as written, without `id` and `strategy`; relative paths joined.
    Defaults live in the strategy's Config."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    asr: float = 0.5
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class Gate:
    metric: str
    op: str
    value: float
    min_n: int = 0


@dataclass(frozen=True, slots=True)
class TokenScope:
    """Which part of the vocabulary the experiment may look at."""

    categories: tuple[str, ...] = ("normal",)
    exclude: tuple[str, ...] | None = None
    """Regular expressions; a token whose text one of them matches anywhere is left out."""


@dataclass(frozen=True, slots=True)
class Tracking:
    uri: str | None = None
    experiment: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """One fully resolved experiment: one cell of the matrix where there is one."""

    name: str
    model: ModelSpec
    steps: tuple[Step, ...]
    description: str = ""
    tags: Mapping[str, str] = None  # type: ignore[assignment]
    template: str | InlineTemplate = "auto"
    system: str | None = None
    template_variables: Mapping[str, Any] | None = None
    """What the tokenizer's own chat template is given besides the conversation."""
    seed: int = 0
    tokens: TokenScope = TokenScope()
    thresholds: Thresholds = Thresholds()
    gates: tuple[Gate, ...] = ()
    engine: str = "local"
    tracking: Tracking = Tracking()
    document: Mapping[str, Any] = None  # type: ignore[assignment]
    """The resolved document as plain data, secrets replaced by `<redacted>`; what
    spec.resolved.yaml holds."""
    origins: Mapping[str, Origin] = None  # type: ignore[assignment]
    """Origin of each value, keyed by its path: `thresholds.asr`, `steps[0].k`."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of an experiment: a spec and the matrix assignments that made it."""

    name: str
    """Readable, unique in the experiment: `quantization=int4, seed=2`; the experiment's own name
    where there is no matrix."""
    assignments: Mapping[str, Any]
    spec: Spec


@dataclass(frozen=True, slots=True)
class Experiment:
    """A loaded spec file."""

    path: Path
    text: str
    """The file as written; what spec.yaml holds."""
    name: str
    cells: tuple[Cell, ...]
