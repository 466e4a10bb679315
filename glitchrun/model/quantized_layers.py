"""Matrices in int4 or int8, and linear layers that multiply by them.

Only the weights are quantized: before a multiplication, a matrix is dequantized to the dtype of the
activations, and freed afterwards. bitsandbytes quantizes and dequantizes, but its layers are not
used, for two reasons. Their results depend on the batch: LLM.int8() selects outlier columns over
the whole batch, and int4 uses different kernels for one row and for several. And on a CPU with
AVX512_BF16 their int4 layer repacks itself in a forward pass without gradients and gives zero
gradients from then on.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from glitchrun.errors import ModelUnavailable
from glitchrun.model.library_messages import quiet_libraries


class QuantizedMatrices(nn.Module, ABC):
    """`count` matrices of shape `(rows, columns)`, each quantized separately."""

    CODES: ClassVar[str] = "codes"
    """Name of the buffer with the codes; the other buffers are scales."""
    scheme: ClassVar[str]
    """`int4` or `int8`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    @classmethod
    @abstractmethod
    def quantize(cls, weights: torch.Tensor) -> QuantizedMatrices:
        """Quantize floats `(count, rows, columns)` on the device that they are on."""

    @abstractmethod
    def matrix(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Matrix `index` dequantized to `dtype`: `(rows, columns)`."""

    def multiply(self, x: torch.Tensor, index: int = 0) -> torch.Tensor:
        """`x` times the transpose of matrix `index`.

        Args:
            x: Activations `(..., columns)`.
            index: Which of the matrices.

        Returns:
            `(..., rows)` in the dtype of `x`.
        """
        product: torch.Tensor = _Multiply.apply(x, self, index)
        return product

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> QuantizedMatrices:
        """Move to another device, but keep the dtype.

        Casting a model (`.float()`) changes the dtype of its activations. The scales are part of
        the weights.
        """

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)
        return self


class _Multiply(torch.autograd.Function):
    """Multiplication that dequantizes again in the backward pass instead of saving floats."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrices: QuantizedMatrices, index: int) -> torch.Tensor:
        ctx.matrices, ctx.index = matrices, index
        return nn.functional.linear(x, matrices.matrix(index, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return grad @ ctx.matrices.matrix(ctx.index, grad.dtype), None, None


class Int8Matrices(QuantizedMatrices):
    """One byte per weight and a float32 scale per row.

    These are the weights of LLM.int8(); its rounding of activations is left out.
    """

    scheme = "int8"

    @classmethod
    def quantize(cls, weights: torch.Tensor) -> Int8Matrices:
        count, rows, columns = weights.shape
        quantized = cls(rows, columns)
        quantized.codes = nn.Buffer(torch.empty_like(weights, dtype=torch.int8))
        quantized.scales = nn.Buffer(
            torch.empty((count, rows), dtype=torch.float32, device=weights.device)
        )
        for index in range(count):  # one at a time: the float16 copy is as large as the matrix
            codes, scales, _ = import_bitsandbytes().int8_vectorwise_quant(
                weights[index].to(torch.float16)
            )
            quantized.codes[index], quantized.scales[index] = codes, scales
        return quantized

    def matrix(self, index: int, dtype: torch.dtype) -> torch.Tensor:
        floats: torch.Tensor = import_bitsandbytes().int8_vectorwise_dequant(
            self.codes[index], self.scales[index]
        )
        return floats.to(dtype)


class Int4Matrices(QuantizedMatrices):
    """nf4 in blocks of 64 with doubly quantized scales: 4.13 bits per weight (QLoRA).

    A matrix is quantized as one row, padded to whole blocks. Otherwise blocks extend over the end
    of a row unless the number of columns is a multiple of 64. bitsandbytes' CPU kernel (0.50) uses
    the wrong scale for such blocks, and compiles another kernel for odd sizes.
    """

    scheme = "int4"
    BLOCK: ClassVar[int] = 64
    SCALE_BLOCK: ClassVar[int] = 256

    @classmethod
    def quantize(cls, weights: torch.Tensor) -> Int4Matrices:
        _, rows, columns = weights.shape
        quantized = cls(rows, columns)
        parts = [cls._quantize_one(matrix) for matrix in weights]
        codes, scales, scale_scales, offsets = (
            torch.stack(part) for part in zip(*parts, strict=True)
        )
        quantized.codes = nn.Buffer(codes)
        quantized.scales = nn.Buffer(scales)
        quantized.scale_scales = nn.Buffer(scale_scales)
        quantized.offsets = nn.Buffer(offsets)
        return quantized

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
    """`bitsandbytes.functional`, imported at the first use, without its messages."""
    with quiet_libraries():
        from bitsandbytes import functional
    return functional


@cache
def _scale_code(device: torch.device) -> torch.Tensor:
    """The 256 values that codes of scales represent: bitsandbytes' dynamic map."""
    code: torch.Tensor = import_bitsandbytes().create_dynamic_map().to(device)
    return code


_NF4_PARTS = (
    "absmax",
    "nested_absmax",
    "quant_map",
    "nested_quant_map",
    "quant_state.bitsandbytes__nf4",
)
"""What bitsandbytes stores beside the codes of a matrix, below its name."""

SCHEMES: dict[str, type[QuantizedMatrices]] = {"int4": Int4Matrices, "int8": Int8Matrices}


class QuantizedLinear(nn.Module):
    """`nn.Linear` with one quantized matrix."""

    def __init__(self, matrices: QuantizedMatrices, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrices = matrices
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The codes `(1, ...)`, for models that read the dtype and device of a layer's weight."""
        return self.matrices.codes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output `(..., rows)` for activations `(..., columns)`."""
        product = self.matrices.multiply(x)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def extra_repr(self) -> str:
        return f"{self.matrices.columns} -> {self.matrices.rows}, {self.matrices.scheme}"


def wrap_prequantized(module: Any) -> None:
    """Replace the bitsandbytes layers of a checkpoint that was quantized before it was stored.

    The new layers have the same codes and scales. Layers of other formats (fp4, other block sizes)
    stay, but without the repacking that gives zero gradients after a forward pass without gradients
    (CPUs with AVX512_BF16, bitsandbytes 0.50).

    Raises ModelUnavailable where codes or scales do not have the sizes of their matrix.
    """
    import_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, layer in list(module.named_modules()):
        matrices: QuantizedMatrices | None = None
        if isinstance(layer, Linear8bitLt):
            matrices = _checked(_from_linear_8bit(layer), name)
        elif isinstance(layer, Linear4bit):
            _check_state(layer, name)
            matrices = _from_linear_4bit(layer)
            layer.support_avx512bf16_for_cpu = False
        if matrices is not None:
            module.set_submodule(name, QuantizedLinear(matrices, layer.bias))


def _checked(found: QuantizedMatrices, name: str) -> QuantizedMatrices:
    """One stored matrix; raises ModelUnavailable where its parts do not have the sizes that it
    needs. bitsandbytes does not check them, and would read memory beyond their ends."""
    sizes = {part: (one.dtype, one.numel()) for part, one in found.named_buffers()}
    weights = found.rows * found.columns
    if isinstance(found, Int4Matrices):
        codes, scales = sizes["codes"][1], sizes["scales"][1]
        needed = {
            "codes": (torch.uint8, max(codes, -(-weights // 2))),
            "scales": (torch.uint8, -(-2 * codes // found.BLOCK)),
            "scale_scales": (torch.float32, -(-scales // found.SCALE_BLOCK)),
            "offsets": (torch.float32, 1),
        }
    else:
        needed = {"codes": (torch.int8, weights), "scales": (torch.float32, found.rows)}
    if sizes != needed:
        raise _unsound(name)
    return found


def _check_state(layer: Any, name: str) -> None:
    """`_checked` for a layer of any format with four bits that bitsandbytes has loaded."""
    state = layer.weight.quant_state
    scales = state.state2.absmax if state.nested else state.absmax
    covered = scales.numel() * (state.state2.blocksize if state.nested else state.blocksize)
    if state.nested:
        covered = min(covered, state.absmax.numel()) * state.blocksize
    held = 2 * layer.weight.data.numel() * layer.weight.data.element_size()
    codes = [(state.code, 16), *([(state.state2.code, 256)] if state.nested else [])]
    short = any(code.numel() < least for code, least in codes)
    if short or min(covered, held) < layer.in_features * layer.out_features:
        raise _unsound(name)


def _unsound(name: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{name}: its quantized weights or their scales do not have the sizes of the matrix; the "
        "checkpoint is damaged: fetch it again"
    )


def unpack_stored(tensors: dict[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> set[str]:
    """Replaces the codes and scales of matrices that bitsandbytes stored by the matrices, in
    float32.

    Args:
        tensors: By name, such as `mlp.up_proj.weight` for codes `(R * K / 2, 1)` of nf4 or `(R, K)`
            of int8; changed in place.
        shapes: `(R, K)` of each matrix, by the same names.

    Returns:
        The names of these matrices.

    Raises:
        ModelUnavailable: codes or scales are missing, or do not have the sizes of their matrix.
    """
    for name in [name for name in tensors if name.endswith(".weight_format")]:
        del tensors[name]
    packed = {name for name, one in tensors.items() if one.dtype in (torch.uint8, torch.int8)}
    packed = {name for name in packed if name.endswith("_proj.weight")}
    for name in packed:
        stored = _stored_nf4 if tensors[name].dtype == torch.uint8 else _stored_int8
        try:
            quantized = stored(tensors, name, shapes[name])
        except (KeyError, TypeError, ValueError) as error:  # a part is missing, or is not JSON
            raise _unsound(name) from error
        tensors[name] = _checked(quantized, name).matrix(0, torch.float32)
    return packed


def _stored_int8(tensors: dict[str, torch.Tensor], name: str, shape: torch.Size) -> Int8Matrices:
    quantized = Int8Matrices(*shape)
    quantized.codes = nn.Buffer(tensors[name][None])
    quantized.scales = nn.Buffer(tensors.pop(f"{name.removesuffix('weight')}SCB")[None])
    return quantized


def _stored_nf4(tensors: dict[str, torch.Tensor], name: str, shape: torch.Size) -> Int4Matrices:
    stored = {part: tensors.pop(f"{name}.{part}") for part in _NF4_PARTS}
    state = json.loads(bytes(stored["quant_state.bitsandbytes__nf4"].tolist()))
    quantized = Int4Matrices(*shape)
    quantized.codes = nn.Buffer(tensors[name].view(-1, 1)[None])
    quantized.scales = nn.Buffer(stored["absmax"][None])
    quantized.scale_scales = nn.Buffer(stored["nested_absmax"][None])
    quantized.offsets = nn.Buffer(torch.tensor([float(state["nested_offset"])]))
    return quantized


def _from_linear_8bit(layer: Any) -> QuantizedMatrices:
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    quantized = Int8Matrices(layer.out_features, layer.in_features)
    quantized.codes = nn.Buffer(layer.weight.data[None])
    quantized.scales = nn.Buffer(scales[None])
    return quantized


def _from_linear_4bit(layer: Any) -> QuantizedMatrices | None:
    state = layer.weight.quant_state
    if layer.in_features * layer.out_features % Int4Matrices.BLOCK:
        return None
    is_nf4 = state.quant_type == "nf4" and state.nested and state.blocksize == Int4Matrices.BLOCK
    if not is_nf4 or state.state2.blocksize != Int4Matrices.SCALE_BLOCK:
        return None
    quantized = Int4Matrices(layer.out_features, layer.in_features)
    # With bnb_4bit_quant_storage, the bytes of codes are stored as elements of a float dtype.
    quantized.codes = nn.Buffer(layer.weight.data.view(torch.uint8).view(-1, 1)[None])
    quantized.scales = nn.Buffer(state.absmax[None])
    quantized.scale_scales = nn.Buffer(state.state2.absmax[None])
    quantized.offsets = nn.Buffer(state.offset.reshape(1))
    return quantized
