"""Quantization while loading, as a quantizer of transformers, including fused experts.

transformers reads a checkpoint one target parameter at a time (a linear layer's matrix, or a fused
stack of experts) and passes each to the quantizer's operation. Only one such parameter exists in 16
bits at a time.
Source: https://huggingface.co/docs/transformers/main/en/quantization/contribute

transformers 5 keeps a layer's experts as 3-D parameters and selects their computation by name
(`experts_implementation`). This module adds one for every architecture whose experts class has
`@use_experts_implementation`. bitsandbytes' own integration silently skips fused experts
(bitsandbytes issue 1849).
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from glitchrun.model.quantized_layers import (
    SCHEMES,
    QuantizedLinear,
    QuantizedMatrices,
    import_bitsandbytes,
)

METHOD = "glitchrun"
EXPERTS_IMPLEMENTATION = "glitchrun_quantized"
_EXPERT_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")
_SORTED = "Llama4TextExperts"
"""Experts whose computation transformers does not let one select. They get a method of their
own."""
_ROUTERS = ("gate", "router", "shared_expert_gate")
"""Linear layers that select experts. They are small, and an error there selects other experts."""

_READ = re.compile(
    r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|data)\b)(?!\s*,\s*$)", re.MULTILINE
)


class WeightOnlyConfig(QuantizationConfigMixin):
    """The `quantization_config` of `from_pretrained` for a scheme, `int4` or `int8`."""

    def __init__(self, scheme: str) -> None:
        super().__init__(quant_method=METHOD)
        self.scheme = scheme


class WeightOnlyQuantizer(HfQuantizer):
    """Quantizes linear layers and fused experts, but not embeddings, head, norms and routers."""

    requires_calibration = False
    quantization_config: WeightOnlyConfig

    def __init__(self, quantization_config: WeightOnlyConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._skipped: set[str] = set()

    @property
    def quantized_element_size(self) -> float:
        return {"int4": 0.5, "int8": 1.0}[self.quantization_config.scheme]

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        head = model.get_output_embeddings()
        tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
        self._skipped = {name.removesuffix(".weight") for name in tied}
        self._skipped |= {name for name, module in model.named_modules() if module is head}
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        path, _dot, name = param_name.rpartition(".")
        module = model.get_submodule(path)
        if _is_fused_weight(module, name):
            return True
        if type(module) not in (nn.Linear, Conv1D) or name != "weight" or path in self._skipped:
            return False
        above, _dot, own = path.rpartition(".")
        kind: Any = type(model.get_submodule(above))
        return own not in _ROUTERS and own not in _read_by(kind)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self.quantization_config.scheme)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


@cache
def _read_by(kind: type) -> frozenset[str]:
    """Names of the layers whose weight a module reads without calling the layer.

    Examples are Mamba's and Jamba's step sizes, LongCat's router and Reformer's queries. A
    quantized layer would give its codes there. The names are found in the module's source. A weight
    alone on its line is an argument of a fused kernel for training and does not count.
    """
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # no source, as in an interpreter
        return frozenset()
    return frozenset(_READ.findall(source))


class _Quantize(ConversionOps):
    """Quantizes the weights of one parameter and puts them into the model."""

    def __init__(self, scheme: str) -> None:
        self.kind = SCHEMES[scheme]

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        *,
        model: Any = None,
        missing_keys: set[str] | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        for target, value in input_dict.items():
            weights = value[0] if isinstance(value, list) else value
            self._put(model, target, weights)
            if missing_keys is not None:
                missing_keys.discard(target)
        return {}  # the loader has nothing more to do

    def _put(self, model: Any, target: str, weights: torch.Tensor) -> None:
        path, _, name = target.rpartition(".")
        module = model.get_submodule(path)
        expected = getattr(module, name).shape
        if weights.shape != expected:
            raise ValueError(
                f"{target}: shape {tuple(weights.shape)} in the checkpoint, {tuple(expected)} in "
                "the model that config.json describes"
            )
        if isinstance(module, nn.Linear | Conv1D):
            rows_first = weights.T if isinstance(module, Conv1D) else weights
            linear = QuantizedLinear(self.kind.quantize(rows_first[None]), module.bias)
            # In GPT-2 and similar models the parent module initializes a layer's weight.
            linear._is_hf_initialized = linear.weight._is_hf_initialized = True
            model.set_submodule(path, linear)
        else:
            _put_quantized_experts(module, name, weights, self.kind)


def register() -> None:
    """Register the quantizer and the experts' forward with transformers; safe to repeat."""
    import_bitsandbytes()
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, quantized_experts_forward)
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, WeightOnlyConfig)
    auto.AUTO_QUANTIZER_MAPPING.setdefault(METHOD, WeightOnlyQuantizer)


def _is_fused_weight(module: Any, name: str) -> bool:
    """Whether a parameter is a fused stack of expert matrices that can be quantized."""
    parameter = getattr(module, name, None)
    # `is_transposed` is set by @use_experts_implementation.
    is_known = hasattr(module, "is_transposed") or type(module).__name__ == _SORTED
    is_stack = isinstance(parameter, nn.Parameter) and parameter.dim() == 3
    return name in _EXPERT_WEIGHTS and is_known and is_stack


def _put_quantized_experts(
    module: Any, name: str, weights: torch.Tensor, kind: type[QuantizedMatrices]
) -> None:
    """Replace the parameter `name` by quantized `weights`, `(experts, rows, columns)`."""
    is_sorted = type(module).__name__ == _SORTED
    rows_first = weights.transpose(1, 2) if is_sorted or module.is_transposed else weights
    if is_sorted:
        module.forward = MethodType(sorted_experts_forward, module)
    delattr(module, name)
    setattr(module, name, kind.quantize(rows_first))
    # Otherwise transformers would initialize the module's weights, which are no longer tensors.
    module._is_hf_initialized = True


def quantized_experts_forward(
    self: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The mixture of experts with quantized matrices.

    Only the selected experts are dequantized, one at a time. Each row sums its experts in the order
    of their numbers, so the result does not depend on the rest of the batch.

    Args:
        self: The experts module.
        hidden: Activations `(N, H)`.
        top_k_index: Selected experts of each row, `(N, K)`.
        top_k_weights: Their weights, `(N, K)`.

    Returns:
        `(N, H)` in the dtype of `hidden`.
    """
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for expert in top_k_index.unique().tolist():
        if expert >= self.num_experts:  # an empty slot
            continue
        rows, slots = torch.where(top_k_index == expert)
        result = _one_expert(self, hidden[rows], expert)
        weighted = result.float() * top_k_weights[rows, slots, None].float()
        total = total.index_add(0, rows, weighted)
    return total.to(hidden.dtype)


def sorted_experts_forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Llama 4's experts with quantized matrices, in place of their own method.

    Every expert gets all positions, multiplied by their router weights. These are 0 where another
    expert is selected, and so is the expert's output, which is not computed.

    Args:
        self: The experts module.
        hidden: Activations `(E * N, H)`, those of the first expert first.

    Returns:
        `(E * N, H)`.
    """
    out = torch.zeros_like(hidden)
    each = len(hidden) // self.num_experts
    routed = torch.where((hidden != 0).any(dim=-1))[0]
    for expert in (routed // each).unique().tolist():
        rows = routed[routed // each == expert]
        gate, up = self.gate_up_proj.multiply(hidden[rows], expert).chunk(2, dim=-1)
        inner = up * self.act_fn(gate)
        out = out.index_add(0, rows, self.down_proj.multiply(inner, expert).to(out.dtype))
    return out


def _one_expert(self: Any, x: torch.Tensor, expert: int) -> torch.Tensor:
    """The output of one expert for rows `(n, H)`."""
    inward = "gate_up_proj" if self.has_gate else "up_proj"
    inner = _project(self, inward, x, expert)
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    result = _project(self, "down_proj", inner, expert)
    return self.post_expert_norm(result) if self.has_post_expert_norm else result


def _project(self: Any, name: str, x: torch.Tensor, expert: int) -> torch.Tensor:
    product: torch.Tensor = getattr(self, name).multiply(x, expert)
    return product + getattr(self, f"{name}_bias")[expert] if self.has_bias else product
