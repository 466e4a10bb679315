"""One model in memory at a time, shared by the runs that want the same one."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.errors import ModelUnavailable
from glitchrun.model.loaded import LoadedModel
from glitchrun.plan.build import fingerprint_now
from glitchrun.report.formatting import size
from glitchrun.spec.types import ModelSpec


def check_unchanged(spec: ModelSpec, fingerprint: str | None) -> None:
    """Raises ModelUnavailable where a model's files are not those that a run was planned with."""
    if not fingerprint:
        return
    if fingerprint_now(spec) != fingerprint:
        raise ModelUnavailable(
            f"model.path {spec.path!r}: the files have changed since the run was planned, so what "
            "it finds would stand under another model's key; apply again, for a run on the new ones"
        )


def _weight_files(spec: ModelSpec) -> tuple[Path, ...]:
    checkpoint = resolve(spec.path, spec.revision)
    return read_header(checkpoint, allow_pickle=spec.allow_pickle, adapter=spec.adapter).files


def _written(path: Path) -> tuple[int, ...]:
    """Which file a path is, and when and how long it was written; empty where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


class Models:
    """Loads models, and keeps the last one for as long as the next run asks for it."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._spec: ModelSpec | None = None
        self._model: LoadedModel | None = None
        self._peak = 0
        self._files: dict[Path, tuple[int, ...]] = {}
        self.reused = False
        """Whether the last run that asked got a model that was loaded for an earlier one."""

    def get(self, spec: ModelSpec, fingerprint: str | None = None) -> LoadedModel:
        """The model of a spec, loaded unless it is the one in memory.

        Raises ModelUnavailable where its files are no longer those of the `fingerprint`, or change
        while they are read.
        """
        check_unchanged(spec, fingerprint)
        self.reused = self._model is not None and spec == self._spec
        if self._model is None or spec != self._spec:
            from glitchrun.model.loading import load

            self._drop()
            self._announce(f"loading {spec.path} ({spec.quantization})")
            model = load(spec)
            check_unchanged(spec, fingerprint)
            self._model, self._spec = model, spec
            self._files = {path: _written(path) for path in _weight_files(spec)}
            self._announce(
                f"loaded in {self._model.load_seconds:.1f} s: "
                f"{size(self._model.bytes)} on {self._model.device}"
            )
        return self._model

    def check_files(self) -> None:
        """Raises ModelUnavailable where a weight file was written over in place since it was
        loaded: weights that are mapped from it have changed with it. One that was replaced by
        another file has not, and stands as it was."""
        for path, (node, *written) in self._files.items():
            now = _written(path)
            if now and now[0] == node and list(now[1:]) != written:
                raise ModelUnavailable(
                    f"{path}: was written to while a run was using it, so what that run found is "
                    "of neither model; start it anew with --fresh"
                )

    def _drop(self) -> None:
        """Frees the model in memory, so that two are never held."""
        self._model = None
        self._peak = 0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def free_bytes(self) -> int:
        """Memory free on the device of the model in memory."""
        if self._model is not None and self._model.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._model.device)
            return int(free)
        return int(psutil.virtual_memory().available)

    def peak_bytes(self) -> int:
        """Most memory used since the model in memory was loaded, loading included: by tensors on
        the GPU, else by this whole process. A step may begin a measurement of its own in between.
        """
        self._peak = max(self._peak, self._peak_since())
        return self._peak

    def _peak_since(self) -> int:
        if self._model is not None and self._model.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._model.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
