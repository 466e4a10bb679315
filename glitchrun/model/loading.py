"""Loads the model that a spec describes."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel

from glitchrun.boundary import first_line, foreign_errors
from glitchrun.checkpoint import fetch, resolve
from glitchrun.checkpoint.cache_folder import cache_folder
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.checkpoint.packed_weights import stored_format
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.events import Stage
from glitchrun.model import quantizer
from glitchrun.model.adapter_merging import merge_adapter
from glitchrun.model.architecture import Architecture, architecture
from glitchrun.model.gguf_conversion import converted, tokenizer_note
from glitchrun.model.library_messages import (
    Report,
    check_complete,
    load_failure,
    load_report,
    no_report,
    quiet_libraries,
    remedy,
    reported_loops,
)
from glitchrun.model.loaded import LoadedModel
from glitchrun.model.memory_use import bytes_by_dtype, left_unquantized, low_memory, watch_peak
from glitchrun.model.placement import (
    allows_disk,
    check_devices,
    check_placement,
    device_arguments,
    out_of_memory,
    pick_device,
)
from glitchrun.model.quantized_layers import SCHEMES, wrap_prequantized
from glitchrun.model.tokenizer_loading import load_tokenizer
from glitchrun.spec.types import ModelSpec

_TRIAL_POSITIONS = 4
"""Positions of the forward pass that checks a model right after loading."""
_FLOAT_DTYPES = ("float32", "float16", "bfloat16")
_REST_DTYPE = "bfloat16"
"""Dtype of activations under int4 and int8, and of the weights that they leave unquantized."""


def load(spec: ModelSpec, cache: Path | None = None, report: Report = no_report) -> LoadedModel:
    """Load the model that `spec` describes, in eval mode and with frozen parameters.

    `cache` is the folder of converted GGUF files; None for the user's folder. `report` takes the
    stages of loading. A hub model that is not on this machine is downloaded. Quantization `none`
    keeps the stored dtype (float32 for a GGUF file). `int4` and `int8` quantize linear layers and
    experts and keep the rest in bfloat16. Weights that are quantized on disk load unchanged,
    regardless of the spec. Of a model for text and images only the language part is loaded. An
    adapter is merged into the weights.

    Raises ModelUnavailable for missing, damaged or disallowed files, DoesNotFit where memory is
    insufficient, PreflightError for a missing device.
    """
    device = pick_device(spec.device)
    check_devices(spec.max_memory)
    if spec.quantization in SCHEMES:
        quantizer.register()  # imports bitsandbytes, which is not part of the load time
    started = time.perf_counter()
    folder = checkpoint_folder(spec, cache, report)
    header = read_header(
        Checkpoint("folder", folder, spec.path),
        allow_pickle=spec.allow_pickle,
        adapter=spec.adapter,
    )
    is_quantizing = spec.quantization in SCHEMES and not header.prequantized
    stage = "quantizing" if is_quantizing else "reading"
    report(Stage(stage, None, unit=""), 0)
    with quiet_libraries(), reported_loops(report, stage):
        target = architecture(folder, header, spec)
        tokenizer = load_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
        peak = watch_peak(device)
        module = _module(target, header, spec, device)
        _check_forward(module, header, spec, folder)
    add_generation_config(module, folder)
    held = bytes_by_dtype(module)
    is_quantized = spec.quantization in SCHEMES or header.prequantized
    stored = f"{stored_format(header)} (as stored)" if header.prequantized else None
    if stored and getattr(module.config, "quantization_config", None) is None:
        # transformers converts formats that it cannot compute with on a device.
        stored = f"{stored_format(header)} (dequantized to {dtype_name(module)})"
    return LoadedModel(
        module=module,
        tokenizer=tokenizer,
        config=module.config,
        device=module.get_input_embeddings().weight.device,
        dtype=dtype_name(module),
        quantization=stored or spec.quantization,
        load_seconds=time.perf_counter() - started,
        # The resident set does not grow by memory that the process had spare before, so the peak is
        # at least the size of the weights.
        peak_bytes=max(peak(), sum(held.values())),
        bytes_by_dtype=held,
        unquantized=left_unquantized(module) if is_quantized else (),
        architecture=header.architecture if header.composite else type(module).__name__,
        tokenizer_note=tokenizer_note(folder),
    )


def dtype_name(module: Any) -> str:
    """torch's name of the dtype of a module's floats, such as `bfloat16`."""
    return str(module.dtype).removeprefix("torch.")


def checkpoint_folder(
    spec: ModelSpec, cache: Path | None = None, report: Report = no_report
) -> Path:
    """The folder of safetensors and tokenizer from which the spec's model loads.

    Downloads a hub model and converts a GGUF file, if that was not done before. Raises
    ModelUnavailable and PreflightError as `load` does.
    """
    checkpoint = resolve(spec.path, spec.revision)
    if checkpoint.path is None:
        report(Stage("downloading", None, unit=""), 0)
        with quiet_libraries():
            checkpoint = fetch(checkpoint)
    assert checkpoint.path is not None  # fetch guarantees it
    if checkpoint.kind == "gguf":
        return converted(checkpoint.path, cache or cache_folder(), report)
    return checkpoint.path


def _module(
    target: Architecture, header: Header, spec: ModelSpec, device: torch.device
) -> PreTrainedModel:
    """The transformers model with all of its weights, an adapter's change included."""
    with low_memory(), _open_weights(header, spec, device) as stored:
        tensors = target.rename(stored)
        if header.adapter is None:
            module = _from_pretrained(target, tensors, header, spec, device)
        elif spec.quantization in SCHEMES:
            # An adapter changes float weights, so it is merged before they are quantized.
            floats = replace(spec, quantization=_REST_DTYPE, max_memory=None)
            base = _from_pretrained(target, tensors, header, floats, torch.device("cpu"))
            merged = dict(_with_adapter(base, target, header).state_dict())
            module = _from_pretrained(target, merged, header, spec, device)
        else:
            base = _from_pretrained(target, tensors, header, spec, device)
            module = _with_adapter(base, target, header)
    if header.prequantized == "bitsandbytes":
        wrap_prequantized(module)
    module.requires_grad_(False)
    return module.eval()


def _with_adapter(module: Any, target: Architecture, header: Header) -> Any:
    assert header.adapter is not None
    offload = getattr(module, "glitchrun_offload", None)
    module = merge_adapter(module, header.adapter, header, target.decoder_prefix(header))
    module.glitchrun_offload = offload
    return module


def _from_pretrained(
    target: Architecture,
    tensors: dict[str, Any],
    header: Header,
    spec: ModelSpec,
    device: torch.device,
) -> PreTrainedModel:
    """The complete model that transformers builds from the tensors, on its devices."""
    offload = TemporaryDirectory(prefix="glitchrun-offload-") if allows_disk(spec) else None
    arguments = _dtype_arguments(spec, header) | device_arguments(spec, device)
    if offload is not None:
        arguments["offload_folder"] = offload.name
    with (
        load_report() as report,
        foreign_errors(partial(load_failure, spec, header, device, report)),
    ):
        module, info = target.model_class.from_pretrained(
            None,
            config=target.config,
            state_dict=tensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_complete reports them
            **arguments,
        )
    check_complete(info, spec.path, module, header)
    check_placement(module, spec)
    module.glitchrun_offload = offload  # the folder is removed together with the module
    return module


def _dtype_arguments(spec: ModelSpec, header: Header) -> dict[str, Any]:
    """The arguments of `from_pretrained` for dtype and quantization."""
    if header.prequantized or spec.quantization == "none":
        return {"dtype": getattr(torch, header.dtype)}
    if spec.quantization in _FLOAT_DTYPES:
        return {"dtype": getattr(torch, spec.quantization)}
    return {
        "dtype": getattr(torch, _REST_DTYPE),
        "quantization_config": quantizer.WeightOnlyConfig(spec.quantization),
        "experts_implementation": quantizer.EXPERTS_IMPLEMENTATION,
    }


def _check_forward(module: Any, header: Header, spec: ModelSpec, folder: Path) -> None:
    """Run a forward pass, which shows wrong settings that change no size.

    Skipped where weights are on disk, because reading them can take minutes.
    """
    if "disk" in getattr(module, "hf_device_map", {}).values():
        return
    device = module.get_input_embeddings().weight.device

    def failed(error: Exception) -> PreflightError:
        if isinstance(error, torch.OutOfMemoryError):
            return out_of_memory(spec, device)
        return ModelUnavailable(
            f"{folder / 'config.json'}: the model that it describes loads, but its forward "
            f"pass fails: {first_line(error)}.{remedy(header, error)}"
        )

    ids = torch.zeros((1, _TRIAL_POSITIONS), dtype=torch.long, device=device)
    with foreign_errors(failed), torch.no_grad():
        module(input_ids=ids, use_cache=False)


def add_generation_config(module: Any, folder: Path) -> None:
    """Add the generation settings: only they list all end-of-text tokens of newer chat models."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    with foreign_errors(
        lambda error: ModelUnavailable(
            f"{path}: cannot be read ({first_line(error)}); restore it, or remove it"
        )
    ):
        module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def _open_weights(
    header: Header, spec: ModelSpec, device: torch.device
) -> AbstractContextManager[dict[str, Any]]:
    if header.format == "pickle":
        return _open_pickled(header.files)
    as_stored = header.prequantized is None and spec.quantization in ("none", header.dtype)
    # Experts are copied into fused stacks; mapped pages would stay in memory together with these.
    is_mapped = as_stored and device.type == "cpu" and not header.dims.num_experts
    return _open_safetensors(header.files, is_mapped=is_mapped)


@contextmanager
def _open_safetensors(files: tuple[Path, ...], *, is_mapped: bool) -> Iterator[dict[str, Any]]:
    """Slice objects by tensor name; `slice[...]` reads the tensor.

    With `is_mapped` the tensors are views of the mapped file and cost nothing until they are used,
    which suits weights that stay as stored. Without it each tensor is read into memory of its own
    and can be freed. Mapped pages of converted weights would stay resident as well.
    """
    with ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(file, framework="pt", backend="mmap" if is_mapped else "pread")
                stack.enter_context(handle)
            except (SafetensorError, OSError) as error:
                raise ModelUnavailable(
                    f"{file}: cannot be read ({error}); it may be cut short, fetch it again"
                ) from error
            tensors.update({name: handle.get_slice(name) for name in handle.keys()})  # noqa: SIM118
        yield tensors


@contextmanager
def _open_pickled(files: tuple[Path, ...]) -> Iterator[dict[str, Any]]:
    """The mapped tensors of pickled files, by name; torch's restricted unpickler runs no code."""
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            tensors.update(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
        # The archive reader raises RuntimeError, the unpickler the rest.
        except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError) as error:
            raise ModelUnavailable(
                f"{file}: cannot be read as weights alone ({str(error).splitlines()[0]})"
            ) from error
    yield tensors
