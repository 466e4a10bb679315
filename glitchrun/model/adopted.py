"""Layers of checkpoints that bitsandbytes quantized before they were stored.

Their codes and scales are kept as they are; only the arithmetic becomes glitchrun's own, for the
reasons in `quantized`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from glitchrun.model.quantized import (
    Int4Matrices,
    Int8Matrices,
    QuantizedLinear,
    QuantizedMatrices,
    import_bitsandbytes,
)


def adopt(module: Any) -> None:
    """Replace the bitsandbytes layers of `module` that `quantized` has a form for.

    Others (fp4, other block sizes) stay, with the repacking switched off that gives zero gradients
    on a CPU with AVX512_BF16 after any forward without gradients (bitsandbytes 0.50).
    """
    import_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, layer in list(module.named_modules()):
        matrices = None
        if isinstance(layer, Linear8bitLt):
            matrices = _int8(layer)
        elif isinstance(layer, Linear4bit):
            matrices = _int4(layer)
            layer.support_avx512bf16_for_cpu = False
        if matrices is not None:
            module.set_submodule(name, QuantizedLinear(matrices, layer.bias))


def _int8(layer: Any) -> QuantizedMatrices:
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    made = Int8Matrices(layer.out_features, layer.in_features)
    made.codes = nn.Buffer(layer.weight.data[None])
    made.scales = nn.Buffer(scales[None])
    return made


def _int4(layer: Any) -> QuantizedMatrices | None:
    state = layer.weight.quant_state
    if layer.in_features * layer.out_features % Int4Matrices.BLOCK:
        return None
    same = state.quant_type == "nf4" and state.nested and state.blocksize == Int4Matrices.BLOCK
    if not same or state.state2.blocksize != Int4Matrices.SCALE_BLOCK:
        return None
    made = Int4Matrices(layer.out_features, layer.in_features)
    made.codes = nn.Buffer(layer.weight.data.view(-1, 1)[None])
    made.scales = nn.Buffer(state.absmax[None])
    made.scale_scales = nn.Buffer(state.state2.absmax[None])
    made.offsets = nn.Buffer(state.offset.reshape(1))
    return made
