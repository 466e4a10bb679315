"""From a model's spec to a model that is ready to run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)

from glitchrun.checkpoint import fetch, resolve
from glitchrun.checkpoint.cache import cache_folder
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import DoesNotFit, ModelUnavailable
from glitchrun.model import census, experts, quantizer
from glitchrun.model.adopted import adopt
from glitchrun.model.device import pick_device, watch_peak
from glitchrun.model.frugal import frugal
from glitchrun.model.gguf_cache import converted, tokenizer_note
from glitchrun.model.loaded import LoadedModel
from glitchrun.model.noise import first_line, load_report, quiet
from glitchrun.model.quantized import SCHEMES
from glitchrun.model.tokenizer import load_tokenizer
from glitchrun.model.weights import open_pickled, open_safetensors
from glitchrun.spec.types import ModelSpec

log = logging.getLogger(__name__)

FLOATS = ("float32", "float16", "bfloat16")
REST_DTYPE = "bfloat16"
"""Of everything that int4 and int8 leave alone, and of their activations."""


def load(spec: ModelSpec, cache: Path | None = None) -> LoadedModel:
    """Load the model that `spec` describes, in eval mode, parameters frozen.

    `cache` is where converted GGUF files are kept; None for the user's folder. A hub model that
    is not on this machine is downloaded. Quantization `none` keeps the stored dtype (float32 for a
    GGUF file); `int4` and `int8` hold linear layers and experts quantized and the rest in bfloat16.
    Weights that are already quantized on disk load as they are, whatever the spec asks for.

    Raises ModelUnavailable (files missing, damaged or not allowed, with the remedy), DoesNotFit
    (not enough memory), PreflightError (no such device).
    """
    device = pick_device(spec.device)
    if spec.quantization in SCHEMES:
        quantizer.register()  # imports bitsandbytes: no part of what loading costs
    started = time.perf_counter()
    folder = checkpoint_folder(spec, cache)
    header = read_header(Checkpoint("folder", folder, spec.path), allow_pickle=spec.allow_pickle)
    with quiet():
        config = _config(folder, header, spec)
        tokenizer = load_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
        model_class = _model_class(folder, config, spec)
        peak = watch_peak(device)
        module = _module(model_class, config, header, spec, device)
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
        architecture=type(module).__name__,
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


def _config(folder: Path, header: Header, spec: ModelSpec) -> Any:
    """The checkpoint's configuration, for a class that may be used."""
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
        )
    except (ValueError, OSError, KeyError, StrictDataclassError) as error:
        if "auto_map" in header.config and not spec.trust_remote_code:
            raise ModelUnavailable(
                f"{folder / 'config.json'}: the model needs code that comes with it (auto_map); "
                "set model.trust_remote_code: true if you trust where it comes from"
            ) from error
        raise ModelUnavailable(
            f"{folder / 'config.json'}: transformers does not take these settings of model_type "
            f"{header.config.get('model_type')!r}: {' '.join(str(error).split())}"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not spec.trust_remote_code:
        raise ModelUnavailable(
            f"{folder / 'config.json'}: {header.architecture} is not a causal language model"
        )
    return config


def _module(
    model_class: Any, config: Any, header: Header, spec: ModelSpec, device: torch.device
) -> PreTrainedModel:
    """The transformers model with its weights in place."""
    offload = TemporaryDirectory(prefix="glitchrun-offload-") if _uses_disk(spec) else None
    arguments = _numbers(spec, header) | _placement(spec, device)
    if offload is not None:
        arguments["offload_folder"] = offload.name
    with frugal(), _weights(header, spec, device) as tensors, load_report() as report:
        try:
            module, found = model_class.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # checked below, with a message of our own
                **arguments,
            )
        except torch.OutOfMemoryError as error:
            raise _does_not_fit(spec, device) from error
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            if "OutOfMemoryError" in report.text:
                raise _does_not_fit(spec, device) from error
            if spec.max_memory and "disk" in str(error):
                raise _beyond_bounds(spec) from error
            detail = report.cause or first_line(error)
            raise ModelUnavailable(
                f"model.path {spec.path!r}: cannot be loaded: {detail}"
            ) from error
    _check_complete(found, spec.path)
    _check_placed(module, spec)
    if header.prequantized == "bitsandbytes":
        adopt(module)
    module.requires_grad_(False)
    module.glitchrun_offload = offload  # the folder goes when the module does
    return module.eval()


def _add_generation_config(module: Any, folder: Path) -> None:
    """Which tokens end a text: newer chat models name several, and only there."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelUnavailable(f"{path}: cannot be read ({first_line(error)})") from error


def _model_class(folder: Path, config: Any, spec: ModelSpec) -> Any:
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = config.auto_map[AutoModelForCausalLM.__name__]
    return get_class_from_dynamic_module(reference, folder, local_files_only=True)


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
    mapped = as_stored and device.type == "cpu" and not header.shape.experts
    return open_safetensors(header.files, mapped=mapped)


def _check_complete(found: Mapping[str, Any], source: str) -> None:
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
        raise ModelUnavailable(
            f"model.path {source!r}: {len(names)} weights of the model that config.json describes "
            f"are not there, such as {names[0]}; fetch the checkpoint again"
        )
    if found["unexpected_keys"]:
        names = sorted(found["unexpected_keys"])
        log.warning("%s: %d tensors are not used, such as %s", source, len(names), names[0])


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
