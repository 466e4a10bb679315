"""Matrices held in int4 or int8, and layers that multiply by them.

The arithmetic is weight-only: a matrix is put back into the dtype of what it is multiplied by, and
let go. bitsandbytes quantizes and dequantizes, but its layers are not used, because their results
depend on the company a row is in (LLM.int8() picks outlier columns over the whole batch, int4 takes
another kernel for one row than for several) and because, on a CPU with AVX512_BF16, their int4
layer repacks itself in a forward without gradients and gives zero gradients from then on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from glitchrun.model.noise import quiet


class QuantizedMatrices(nn.Module, ABC):
    """`count` matrices of one shape (rows, columns), each quantized for itself."""

    CODES: ClassVar[str] = "codes"
    """Name of the buffer that holds the codes; the other buffers are scales."""
    scheme: ClassVar[str]

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    @classmethod
    @abstractmethod
    def quantize(cls, weights: torch.Tensor) -> QuantizedMatrices:
        """Quantize `weights` (count, rows, columns), floats on any device, where they are."""

    @abstractmethod
    def matrix(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Matrix `index` as floats, (rows, columns)."""

    def multiply(self, x: torch.Tensor, index: int = 0) -> torch.Tensor:
        """`x` (..., columns) times matrix `index` transposed: (..., rows), in the dtype of `x`."""
        product: torch.Tensor = _Multiply.apply(x, self, index)
        return product

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> QuantizedMatrices:
        """Follow the module to another device, but not into another dtype.

        Casting a model (`.float()`) changes the arithmetic; the scales are part of the weights.
        """

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)
        return self


class _Multiply(torch.autograd.Function):
    """Saves no floats for the backward pass: the matrix is put together again there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrices: QuantizedMatrices, index: int) -> torch.Tensor:
        ctx.matrices, ctx.index = matrices, index
        return nn.functional.linear(x, matrices.matrix(index, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return grad @ ctx.matrices.matrix(ctx.index, grad.dtype), None, None


class Int8Matrices(QuantizedMatrices):
    """One byte per weight and a float32 scale per row: LLM.int8()'s weights, without its rounding
    of activations."""

    scheme = "int8"

    @classmethod
    def quantize(cls, weights: torch.Tensor) -> Int8Matrices:
        count, rows, columns = weights.shape
        made = cls(rows, columns)
        made.codes = nn.Buffer(torch.empty_like(weights, dtype=torch.int8))
        made.scales = nn.Buffer(
            torch.empty((count, rows), dtype=torch.float32, device=weights.device)
        )
        for index in range(count):  # one at a time: the float16 copy is as large as the matrix
            codes, scales, _ = import_bitsandbytes().int8_vectorwise_quant(
                weights[index].to(torch.float16)
            )
            made.codes[index], made.scales[index] = codes, scales
        return made

    def matrix(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        floats: torch.Tensor = import_bitsandbytes().int8_vectorwise_dequant(
            self.codes[index], self.scales[index]
        )
        return floats.to(dtype)


class Int4Matrices(QuantizedMatrices):
    """nf4 in blocks of 64 with doubly quantized scales: 4.13 bits per weight (QLoRA).

    Matrices are quantized as one row, filled up to whole blocks. bitsandbytes' CPU kernel (0.50)
    takes the wrong scale for blocks that run over the end of a row, which they do unless the
    columns are a multiple of 64, and falls back to compiling one for odd sizes.
    """

    scheme = "int4"
    BLOCK: ClassVar[int] = 64
    SCALE_BLOCK: ClassVar[int] = 256

    @classmethod
    def quantize(cls, weights: torch.Tensor) -> Int4Matrices:
        _, rows, columns = weights.shape
        made = cls(rows, columns)
        parts = [cls._quantize_one(matrix) for matrix in weights]
        codes, scales, scale_scales, offsets = (
            torch.stack(part) for part in zip(*parts, strict=True)
        )
        made.codes = nn.Buffer(codes)
        made.scales = nn.Buffer(scales)
        made.scale_scales = nn.Buffer(scale_scales)
        made.offsets = nn.Buffer(offsets)
        return made

    @classmethod
    def _quantize_one(cls, matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = matrix.reshape(-1)
        flat = nn.functional.pad(flat, (0, -len(flat) % cls.BLOCK))
        codes, state = import_bitsandbytes().quantize_4bit(
            flat, blocksize=cls.BLOCK, compress_statistics=True, quant_type="nf4"
        )
        return codes, state.absmax, state.state2.absmax, state.offset

    def matrix(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        scales = import_bitsandbytes().QuantState(
            absmax=self.scale_scales[index],
            code=_scale_code(self.codes.device),
            blocksize=self.SCALE_BLOCK,
            dtype=torch.float32,
        )
        state = import_bitsandbytes().QuantState(
            absmax=self.scales[index],
            shape=torch.Size((2 * self.codes.shape[1],)),
            blocksize=self.BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=self.offsets[index],
            state2=scales,
        )
        flat: torch.Tensor = import_bitsandbytes().dequantize_4bit(self.codes[index], state)
        return flat.flatten()[: self.rows * self.columns].view(self.rows, self.columns)


@cache
def import_bitsandbytes() -> Any:
    """bitsandbytes, imported when first needed: it logs what its CPU backend lacks as it is."""
    with quiet():
        from bitsandbytes import functional
    return functional


@cache
def _scale_code(device: torch.device) -> torch.Tensor:
    """The 256 values that quantized scales stand for: bitsandbytes' dynamic map."""
    code: torch.Tensor = import_bitsandbytes().create_dynamic_map().to(device)
    return code


SCHEMES: dict[str, type[QuantizedMatrices]] = {"int4": Int4Matrices, "int8": Int8Matrices}


class QuantizedLinear(nn.Module):
    """`nn.Linear` over one quantized matrix."""

    def __init__(self, matrices: QuantizedMatrices, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrices = matrices
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The codes: models that look at a layer's weight ask for its dtype and device."""
        return self.matrices.codes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = self.matrices.multiply(x)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def extra_repr(self) -> str:
        return f"{self.matrices.columns} -> {self.matrices.rows}, {self.matrices.scheme}"
