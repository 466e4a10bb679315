"""Float32 arithmetic on a model whose weights are stored in fewer bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_LOW = (torch.bfloat16, torch.float16)


class Float32Arithmetic(TorchFunctionMode):
    """While active, every operation on bfloat16 or float16 tensors is done in float32.

    Weights are widened one operation at a time, so the extra memory is one weight, not one model.
    Quantized weights keep their values: they are dequantized as always and multiplied in float32.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            return _widen_dtype(func(*args))
        return func(*tree_map(_widen, args), **tree_map(_widen, kwargs or {}))


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _LOW else value
    return _widen_dtype(value)


def _widen_dtype(value: Any) -> Any:
    """float32 for a narrow dtype, so that `x.to(weight.dtype)` does not round in between."""
    return torch.float32 if isinstance(value, torch.dtype) and value in _LOW else value
