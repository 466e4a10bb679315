"""The placement of a model's weights: on one device, or on several devices within
`model.max_memory`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from glitchrun.errors import DoesNotFit, PreflightError
from glitchrun.spec.types import ModelSpec


def pick_device(name: str) -> torch.device:
    """The device that `model.device` names: `auto`, `cpu`, `cuda` or `cuda:N`.

    `auto` is cuda:0 if there is one, else the CPU. Raises PreflightError for a missing GPU.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = 0 if name in ("auto", "cuda") else _cuda_index(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise PreflightError(
            f"model.device {name!r}: this machine has {count} usable CUDA devices (torch "
            f"{torch.__version__}); use device: auto or cpu, or install a CUDA build of torch"
        )
    return torch.device("cuda", index)


def _cuda_index(name: str) -> int:
    match = re.fullmatch(r"cuda:(\d+)", name)
    if match is None:
        raise PreflightError(f"model.device {name!r}: expected auto, cpu, cuda or cuda:N")
    return int(match[1])


def check_devices(max_memory: Mapping[str, str | int] | None) -> None:
    """Raises PreflightError where `max_memory` names a missing GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    absent = [key for key in max_memory or {} if str(key).isdigit() and int(key) >= count]
    if absent:
        raise PreflightError(
            f"model.max_memory names the GPU {absent[0]}, but this machine has {count} usable CUDA "
            f"devices (torch {torch.__version__}); remove it, or install a CUDA build of torch"
        )


def device_arguments(spec: ModelSpec, device: torch.device) -> dict[str, Any]:
    """The arguments of `from_pretrained` that place the weights on devices."""
    if not spec.max_memory:
        return {"device_map": {"": device}}
    bounds = {int(k) if str(k).isdigit() else k: v for k, v in spec.max_memory.items()}
    return {"device_map": "auto", "max_memory": bounds}


def allows_disk(spec: ModelSpec) -> bool:
    """Whether the spec allows weights on disk, which are read again at every pass."""
    return "disk" in (spec.max_memory or {})


def check_placement(module: Any, spec: ModelSpec) -> None:
    """Raises DoesNotFit where weights were placed on disk that the spec does not allow there."""
    places = set(getattr(module, "hf_device_map", {}).values())
    if "disk" in places and not allows_disk(spec):
        raise beyond_max_memory(spec)
    if module.get_input_embeddings().weight.device.type == "meta":
        raise DoesNotFit(
            f"model.max_memory {dict(spec.max_memory or {})}: not even the input embedding fits "
            "into memory; allow more"
        )


def beyond_max_memory(spec: ModelSpec) -> DoesNotFit:
    """The error for a model that does not fit into `model.max_memory`."""
    return DoesNotFit(
        f"model.max_memory {dict(spec.max_memory or {})}: the model does not fit into it and would "
        "be read from disk at every step; allow more memory, quantize further, or add disk to it"
    )


def out_of_memory(spec: ModelSpec, device: torch.device) -> DoesNotFit:
    """The error for a device that ran out of memory while the model was loading."""
    return DoesNotFit(
        f"model.path {spec.path!r} in {spec.quantization} does not fit on {device}: it ran out of "
        "memory while loading; quantize further (model.quantization: int4), or distribute it over "
        "several devices with model.max_memory"
    )
