"""From a model's spec to a model that is ready to run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from glitchrun.boundary import first_line, foreign_errors, install_command
from glitchrun.checkpoint import fetch, resolve
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.checkpoint.model_cache import cache_folder
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import DoesNotFit, ModelUnavailable, PreflightError
from glitchrun.model import census, experts, quantizer
from glitchrun.model.adapters import merged
from glitchrun.model.adopted import adopt
from glitchrun.model.architecture import Architecture, architecture
from glitchrun.model.device import check_devices, pick_device, watch_peak
from glitchrun.model.frugal import frugal
from glitchrun.model.gguf_cache import converted, tokenizer_note
from glitchrun.model.loaded import LoadedModel
from glitchrun.model.noise import LoadReport, load_report, quiet
from glitchrun.model.quantized import SCHEMES
from glitchrun.model.tokenizer import load_tokenizer
from glitchrun.model.weights import open_pickled, open_safetensors
from glitchrun.spec.types import ModelSpec

log = logging.getLogger(__name__)

_TRIED = 4
"""Positions that a model just loaded computes, to see that it can."""
FLOATS = ("float32", "float16", "bfloat16")
REST_DTYPE = "bfloat16"
"""Of everything that int4 and int8 leave alone, and of their activations."""


def load(spec: ModelSpec, cache: Path | None = None) -> LoadedModel:
    """Load the model that `spec` describes, in eval mode, parameters frozen.

    `cache` is where converted GGUF files are kept; None for the user's folder. A hub model that
    is not on this machine is downloaded. Quantization `none` keeps the stored dtype (float32 for a
    GGUF file); `int4` and `int8` hold linear layers and experts quantized and the rest in bfloat16.
    Weights that are already quantized on disk load as they are, whatever the spec asks for. Of a
    model for text and images the language part is loaded; an adapter is merged into the weights.

    Raises ModelUnavailable (files missing, damaged or not allowed, with the remedy), DoesNotFit
    (not enough memory), PreflightError (no such device).
    """
    device = pick_device(spec.device)
    check_devices(spec.max_memory)
    if spec.quantization in SCHEMES:
        quantizer.register()  # imports bitsandbytes: no part of what loading costs
    started = time.perf_counter()
    folder = checkpoint_folder(spec, cache)
    header = read_header(
        Checkpoint("folder", folder, spec.path),
        allow_pickle=spec.allow_pickle,
        adapter=spec.adapter,
    )
    with quiet():
        shape = architecture(folder, header, spec)
        tokenizer = load_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
        peak = watch_peak(device)
        module = _module(shape, header, spec, device)
        _try_out(module, header, spec, folder)
    _add_generation_config(module, folder)
    held = census.take(module)
    quantized = spec.quantization in SCHEMES or header.prequantized
    return LoadedModel(
        module=module,
        tokenizer=tokenizer,
        config=module.config,
        device=module.get_input_embeddings().weight.device,
        dtype=str(module.dtype).removeprefix("torch."),
        quantization=_quantization_name(spec, header),
        load_seconds=time.perf_counter() - started,
        # What is held was in use at the end; memory that the process had to spare before hides it
        # from the resident set.
        peak_bytes=max(peak(), sum(held.values())),
        census=held,
        unquantized=census.left_unquantized(module) if quantized else (),
        architecture=header.architecture if header.composite else type(module).__name__,
        tokenizer_note=tokenizer_note(folder),
    )


def checkpoint_folder(spec: ModelSpec, cache: Path | None = None) -> Path:
    """The folder of safetensors and tokenizer that the spec's model loads from.

    A GGUF file is converted first, a hub model fetched, where that was not done before.
    """
    checkpoint = fetch(resolve(spec.path, spec.revision))
    assert checkpoint.path is not None  # fetch sees to it
    if checkpoint.kind == "gguf":
        return converted(checkpoint.path, cache or cache_folder())
    return checkpoint.path


def _quantization_name(spec: ModelSpec, header: Header) -> str:
    return f"{header.prequantized} (as stored)" if header.prequantized else spec.quantization


def _module(
    shape: Architecture, header: Header, spec: ModelSpec, device: torch.device
) -> PreTrainedModel:
    """The transformers model with its weights in place."""
    with frugal(), _weights(header, spec, device) as stored:
        tensors = shape.placed(stored)
        if header.adapter is None:
            module = _loaded(shape, tensors, header, spec, device)
        elif spec.quantization in SCHEMES:
            # An adapter is a change of weights in floats: these are merged first, then quantized.
            floats = replace(spec, quantization=REST_DTYPE, max_memory=None)
            whole = _loaded(shape, tensors, header, floats, torch.device("cpu"))
            weights = dict(_merged(whole, shape, header).state_dict())
            module = _loaded(shape, weights, header, spec, device)
        else:
            module = _merged(_loaded(shape, tensors, header, spec, device), shape, header)
    if header.prequantized == "bitsandbytes":
        adopt(module)
    module.requires_grad_(False)
    return module.eval()


def _try_out(module: Any, header: Header, spec: ModelSpec, folder: Path) -> None:
    """Run a few positions: wrong settings that affect no size only show in a forward pass.

    Not where weights are read from disk for every pass, which can take minutes.
    """
    if "disk" in getattr(module, "hf_device_map", {}).values():
        return
    device = module.get_input_embeddings().weight.device

    def failed(error: Exception) -> PreflightError:
        if isinstance(error, torch.OutOfMemoryError):
            return _does_not_fit(spec, device)
        return ModelUnavailable(
            f"{folder / 'config.json'}: the model that it describes loads, but its forward "
            f"pass fails: {first_line(error)}.{_remedy(header, error)}"
        )

    ids = torch.zeros((1, _TRIED), dtype=torch.long, device=device)
    with foreign_errors(failed), torch.no_grad():
        module(input_ids=ids, use_cache=False)


def _merged(module: Any, shape: Architecture, header: Header) -> Any:
    assert header.adapter is not None
    inside = shape.name(header.embedding).removesuffix(".weight").rpartition(".")[0] + "."
    offload = getattr(module, "glitchrun_offload", None)
    module = merged(module, header.adapter, header, inside)
    module.glitchrun_offload = offload
    return module


def _loaded(
    shape: Architecture,
    tensors: dict[str, Any],
    header: Header,
    spec: ModelSpec,
    device: torch.device,
) -> PreTrainedModel:
    """What `from_pretrained` makes of the tensors, complete and where it should be."""
    offload = TemporaryDirectory(prefix="glitchrun-offload-") if _uses_disk(spec) else None
    arguments = _numbers(spec, header) | _placement(spec, device)
    if offload is not None:
        arguments["offload_folder"] = offload.name
    with load_report() as report, foreign_errors(partial(_failed, spec, header, device, report)):
        module, found = shape.model_class.from_pretrained(
            None,
            config=shape.config,
            state_dict=tensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below, with a message of our own
            **arguments,
        )
    _check_complete(found, spec.path, module, header)
    _check_placed(module, spec)
    module.glitchrun_offload = offload  # the folder goes when the module does
    return module


def _failed(
    spec: ModelSpec, header: Header, device: torch.device, report: LoadReport, error: Exception
) -> PreflightError:
    """The error to raise for an exception during loading."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in text for sign in _OUT_OF_MEMORY for text in (report.text, str(error))
    ):
        return _does_not_fit(spec, device)
    if spec.max_memory and "disk" in str(error):
        return _beyond_bounds(spec)
    detail = (report.cause or " ".join(first_line(error).split())).rstrip(".")
    return ModelUnavailable(
        f"model.path {spec.path!r}: cannot be loaded: {detail}.{_remedy(header, error)}"
    )


METHOD_PACKAGES = {
    "aqlm": "'aqlm[cpu,gpu]'",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels",
    "fbgemm_fp8": "fbgemm-gpu",
    "fouroversix": "fouroversix --no-build-isolation",
    "fp_quant": "fp_quant qutlass",
    "gptq": "optimum gptqmodel",
    "higgs": "flute-kernel fast_hadamard_transform",
    "hqq": "hqq",
    "metal": "kernels",
    "mxfp4": "kernels triton",
    "nvfp4": "kernels",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "sinq": "sinq",
    "spqr": "'spqr_quant[gpu]'",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""What pip calls the packages that a quantization method needs; transformers names them one at a
time, or a page of instructions."""
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "not enough memory")


def _remedy(header: Header, error: Exception) -> str:
    """The remedy to add to the message of another library."""
    if isinstance(error, ImportError):
        packages = METHOD_PACKAGES.get(header.prequantized or "")
        command = f"pip install {packages}" if packages else install_command(error)
        if command:
            return f" Install the missing package with: {command}"
    if header.prequantized:
        return (
            f" The weights are quantized on disk ({header.prequantized}); give the unquantized "
            "checkpoint with model.quantization: int4 or int8, or run on a device that the method "
            "supports"
        )
    return " Check that config.json and weights belong together, and that nothing is cut short"


def _add_generation_config(module: Any, folder: Path) -> None:
    """Which tokens end a text: newer chat models name several, and only there."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    with foreign_errors(
        lambda error: ModelUnavailable(
            f"{path}: cannot be read ({first_line(error)}); restore it, or remove it"
        )
    ):
        module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def _numbers(spec: ModelSpec, header: Header) -> dict[str, Any]:
    """In which numbers: `from_pretrained`'s dtype and quantization."""
    if header.prequantized or spec.quantization == "none":
        return {"dtype": getattr(torch, header.dtype)}
    if spec.quantization in FLOATS:
        return {"dtype": getattr(torch, spec.quantization)}
    return {
        "dtype": getattr(torch, REST_DTYPE),
        "quantization_config": quantizer.WeightOnlyConfig(spec.quantization),
        "experts_implementation": experts.IMPLEMENTATION,
    }


def _placement(spec: ModelSpec, device: torch.device) -> dict[str, Any]:
    """Where: one device, or shared out over several under the bounds of `max_memory`."""
    if not spec.max_memory:
        return {"device_map": {"": device}}
    bounds = {int(k) if str(k).isdigit() else k: v for k, v in spec.max_memory.items()}
    return {"device_map": "auto", "max_memory": bounds}


def _uses_disk(spec: ModelSpec) -> bool:
    """Whether the spec itself lets weights lie on disk, to be read at every pass."""
    return "disk" in (spec.max_memory or {})


def _weights(
    header: Header, spec: ModelSpec, device: torch.device
) -> AbstractContextManager[dict[str, Any]]:
    if header.format == "pickle":
        return open_pickled(header.files)
    as_stored = header.prequantized is None and spec.quantization in ("none", header.dtype)
    # Experts are merged into stacks: what was mapped would stay beside them.
    mapped = as_stored and device.type == "cpu" and not header.dims.num_experts
    return open_safetensors(header.files, mapped=mapped)


def _check_complete(found: Mapping[str, Any], source: str, module: Any, header: Header) -> None:
    """Refuse weights that transformers would have made up at random."""
    if found["mismatched_keys"]:
        name, stored, wanted = min(found["mismatched_keys"])
        raise ModelUnavailable(
            f"model.path {source!r}: {name} has shape {tuple(stored)}, the model that config.json "
            f"describes wants {tuple(wanted)} ({len(found['mismatched_keys'])} such weights); "
            "config.json and weights do not belong together"
        )
    if found["missing_keys"]:
        names = sorted(found["missing_keys"])
        if names == [_head_name(module)]:
            raise ModelUnavailable(
                f"model.path {source!r}: the output matrix {names[0]} is not there, and "
                "config.json does not tie it to the input embedding. Set tie_word_embeddings: true "
                "there if this model has one matrix for both; otherwise the weights are not whole"
            )
        raise ModelUnavailable(
            f"model.path {source!r}: {len(names)} weights of the model that config.json describes "
            f"are not there, such as {names[0]}; {_incomplete(header)}"
        )
    if found["unexpected_keys"]:
        names = sorted(found["unexpected_keys"])
        log.warning("%s: %d tensors are not used, such as %s", source, len(names), names[0])


def _incomplete(header: Header) -> str:
    if header.composite:
        return (
            f"the language part of {header.architecture} could not be put together from them: they "
            "are not whole, or transformers reads this family only as a whole"
        )
    return "fetch the checkpoint again, or restore the config.json that belongs to it"


def _head_name(module: Any) -> str | None:
    """The name of the output matrix among the module's parameters."""
    head = module.get_output_embeddings()
    names = (name for name, part in module.named_modules() if part is head)
    return next((f"{name}.weight" for name in names), None)


def _check_placed(module: Any, spec: ModelSpec) -> None:
    places = set(getattr(module, "hf_device_map", {}).values())
    if "disk" in places and not _uses_disk(spec):
        raise _beyond_bounds(spec)
    if module.get_input_embeddings().weight.device.type == "meta":
        raise DoesNotFit(
            f"model.max_memory {dict(spec.max_memory or {})}: not even the input embedding fits "
            "into memory; allow more"
        )


def _beyond_bounds(spec: ModelSpec) -> DoesNotFit:
    return DoesNotFit(
        f"model.max_memory {dict(spec.max_memory or {})}: the model does not fit into it and would "
        "be read from disk at every step; allow more memory, quantize further, or name disk there "
        "too"
    )


def _does_not_fit(spec: ModelSpec, device: torch.device) -> DoesNotFit:
    return DoesNotFit(
        f"model.path {spec.path!r} in {spec.quantization} does not fit on {device}: it ran out of "
        "memory while loading; quantize further (model.quantization: int4), or share it out with "
        "model.max_memory"
    )
