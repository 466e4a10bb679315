"""How many bytes a model holds, and in what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from glitchrun.model.quantized import QuantizedMatrices

LARGE = 0.01
"""Share of a model's bytes from which a weight left unquantized is named."""


def take(module: Any) -> dict[str, int]:
    """Bytes held by storage dtype, each storage counted once (tied weights).

    Quantized codes count as `int4` or `int8`, their scales as `quantization scales`, everything
    else under torch's name of its dtype. The sum is what the module holds, but for the 1 KB table
    of bitsandbytes that all int4 matrices of a process share.
    """
    census: dict[str, int] = {}
    for _, kind, tensor in _storages(module):
        census[kind] = census.get(kind, 0) + tensor.untyped_storage().nbytes()
    return dict(sorted(census.items(), key=lambda item: -item[1]))


def by_device(module: Any) -> dict[tuple[str, str], int]:
    """As `take`, by device and dtype. What lies elsewhere until it is needed is on `meta`."""
    census: dict[tuple[str, str], int] = {}
    for _, kind, tensor in _storages(module):
        key = (str(tensor.device), kind)
        census[key] = census.get(key, 0) + tensor.untyped_storage().nbytes()
    return dict(sorted(census.items(), key=lambda item: (item[0][0], -item[1])))


def left_unquantized(module: Any) -> tuple[str, ...]:
    """Names of float matrices of at least 1 % of the model's bytes, largest first.

    Input embedding and head stay in 16 bits by intention and are not named.
    """
    total = sum(take(module).values())
    found = [
        (tensor.nbytes, name)
        for name, kind, tensor in _storages(module, skip=_kept(module))
        if tensor.is_floating_point() and tensor.dim() > 1 and "quantization" not in kind
    ]
    return tuple(name for size, name in sorted(found, reverse=True) if size >= LARGE * total)


def _kept(module: Any) -> set[int]:
    """Storages of the input embedding and the head."""
    ends = (module.get_input_embeddings(), module.get_output_embeddings())
    return {end.weight.untyped_storage().data_ptr() for end in ends if end is not None}


def _storages(module: Any, skip: set[int] | None = None) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(name, kind, tensor) of every storage, once."""
    seen = set(skip or ())
    for prefix, part in module.named_modules():
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for name, tensor in [*own, *_foreign_scales(part)]:
            # What is offloaded has no address until it is needed: there each tensor is itself.
            is_away = tensor.device.type == "meta"
            address = -id(tensor) if is_away else tensor.untyped_storage().data_ptr()
            if address not in seen:
                seen.add(address)
                yield f"{prefix}.{name}".lstrip("."), _kind(part, name, tensor), tensor


def _kind(part: Any, name: str, tensor: torch.Tensor) -> str:
    if isinstance(part, QuantizedMatrices):
        return part.scheme if name == part.CODES else "quantization scales"
    foreign = type(tensor).__name__
    if foreign in _FOREIGN_CODES:
        return _FOREIGN_CODES[foreign]
    return "quantization scales" if name in _SCALES else str(tensor.dtype).removeprefix("torch.")


# Checkpoints that were quantized with bitsandbytes on disk keep its own classes.
_FOREIGN_CODES = {"Params4bit": "int4", "Int8Params": "int8"}
_SCALES = ("absmax", "nested absmax", "offset", "SCB")


def _foreign_scales(part: Any) -> list[tuple[str, torch.Tensor]]:
    """Scales that bitsandbytes keeps beside its parameters, where torch does not list them."""
    weight = getattr(part, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        nested = state.state2.absmax if state.nested else None
        found = {"absmax": state.absmax, "nested absmax": nested, "offset": state.offset}
        return [(name, tensor) for name, tensor in found.items() if tensor is not None]
    scale = getattr(weight, "SCB", None)
    scale = getattr(getattr(part, "state", None), "SCB", None) if scale is None else scale
    return [] if scale is None else [("SCB", scale)]
