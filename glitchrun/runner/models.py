"""Keeps one model in memory at a time, for consecutive runs with the same model."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.errors import ModelUnavailable
from glitchrun.events import Stage
from glitchrun.plan.build import fingerprint_now
from glitchrun.plan.streaming import StreamPlan
from glitchrun.report.formatting import size
from glitchrun.spec.types import ModelSpec

if TYPE_CHECKING:
    from glitchrun.model.library_messages import Report
    from glitchrun.model.loaded import LoadedModel

_Kept = TypeVar("_Kept")


def check_unchanged(spec: ModelSpec, fingerprint: str | None) -> None:
    """Checks that a model's files are those that a run was planned with.

    Args:
        spec: The model.
        fingerprint: Fingerprint of the files in the plan; None or empty to check nothing.

    Raises:
        ModelUnavailable: the files have changed.
    """
    if not fingerprint:
        return
    if fingerprint_now(spec) != fingerprint:
        raise ModelUnavailable(
            f"model.path {spec.path!r}: the files have changed since the run was planned, so its "
            "results would get another model's key; apply again, for a run of the new files"
        )


def _weight_files(spec: ModelSpec) -> tuple[Path, ...]:
    checkpoint = resolve(spec.path, spec.revision)
    return read_header(checkpoint, allow_pickle=spec.allow_pickle, adapter=spec.adapter).files


def _file_state(path: Path) -> tuple[int, ...]:
    """(inode, modification time, size) of a file; empty if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _unseen(name: str) -> AbstractContextManager[Report]:
    """An activity that is not shown."""

    def ignore(stage: Stage, done: int) -> None:
        """Shows nothing."""

    return nullcontext(ignore)


class Models:
    """Loads models, and keeps the last one until a run needs another."""

    def __init__(
        self,
        announce: Callable[[str], None],
        activity: Callable[[str], AbstractContextManager[Report]] = _unseen,
    ) -> None:
        """`announce` receives messages about loading; `activity` shows how far it is."""
        self._announce = announce
        self._activity = activity
        self._spec: ModelSpec | None = None
        self._model: LoadedModel | None = None
        self._peak = 0
        self._files: dict[Path, tuple[int, ...]] = {}
        self._kept: dict[object, Any] = {}
        self.reused = False
        """Whether the last call of `get` returned a model that was in memory already."""

    def get(
        self,
        spec: ModelSpec,
        fingerprint: str | None = None,
        stream: StreamPlan | None = None,
    ) -> LoadedModel:
        """The model of a spec, loaded unless it is in memory already.

        Args:
            spec: The model. Its weights stay on disk if `residency` is `streamed`.
            fingerprint: Of its files in the plan; None to check nothing.
            stream: Sizes of the passes of a streamed model.

        Raises:
            ModelUnavailable: its files are not those of the `fingerprint`, or changed while they
                were read.
        """
        check_unchanged(spec, fingerprint)
        self.reused = self._model is not None and spec == self._spec
        if self._model is None or spec != self._spec:
            self._drop()
            self._model, self._spec = self._load(spec, fingerprint), spec
            self._files = {path: _file_state(path) for path in _weight_files(spec)}
        if stream is not None and spec.residency == "streamed":
            self._model = replace(self._model, plan=stream)  # type: ignore[call-arg]
        return self._model

    def _load(self, spec: ModelSpec, fingerprint: str | None) -> LoadedModel:
        from glitchrun.model.loading import load
        from glitchrun.model.streamed import load_streamed

        streams = spec.residency == "streamed"
        verb = "preparing" if streams else "loading"
        self._announce(f"{verb} {spec.path} ({spec.quantization})")
        model: LoadedModel
        with self._activity("model") as report:
            model = load_streamed(spec, report=report) if streams else load(spec, report=report)
            check_unchanged(spec, fingerprint)
        if model.cache_note:
            self._announce(model.cache_note)
        done = f"streaming {size(model.bytes)} from disk" if streams else f"{size(model.bytes)}"
        self._announce(f"loaded in {model.load_seconds:.1f} s: {done} on {model.device}")
        return model

    def keep(self, name: object, compute: Callable[[], _Kept]) -> _Kept:
        """What `compute` gives, computed once for all runs with the model in memory.

        Args:
            name: What it is; equal names mean equal values.
            compute: Computes it of that model.
        """
        if name not in self._kept:
            self._kept[name] = compute()
        kept: _Kept = self._kept[name]
        return kept

    def check_files(self) -> None:
        """Checks that no weight file was overwritten in place since it was loaded.

        Memory-mapped weights would have changed with it. A file that was replaced by a new one is
        harmless: the mapping keeps the old one.

        Raises:
            ModelUnavailable: a file was overwritten.
        """
        for path, (node, *written) in self._files.items():
            now = _file_state(path)
            if now and now[0] == node and list(now[1:]) != written:
                raise ModelUnavailable(
                    f"{path}: was written to while a run was using it, so the run's results "
                    "belong to neither model; start it anew with --fresh"
                )

    def _drop(self) -> None:
        """Frees the model in memory before the next one is loaded."""
        import torch

        self._kept.clear()
        self._model = None
        self._peak = 0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def free_bytes(self) -> int:
        """Free memory on the device of the model, in bytes."""
        if self._model is not None and self._model.device.type == "cuda":
            import torch

            free, _ = torch.cuda.mem_get_info(self._model.device)
            return int(free)
        return int(psutil.virtual_memory().available)

    def peak_bytes(self) -> int:
        """Peak memory in bytes since the model was loaded, loading included.

        That of tensors on a GPU, else of the whole process. A step may reset the GPU's counter, so
        the maximum over all calls counts.
        """
        self._peak = max(self._peak, self._peak_since())
        return self._peak

    def _peak_since(self) -> int:
        if self._model is not None and self._model.device.type == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated(self._model.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
