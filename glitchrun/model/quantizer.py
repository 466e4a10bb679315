"""Quantization while loading, as a quantizer of transformers: tensor by tensor, experts included.

transformers reads a checkpoint one target parameter at a time (a linear layer's matrix, or one
fused stack of experts put together from the checkpoint's single ones) and hands each to the
quantizer's operation, so that no more than one such parameter exists in 16 bits at once.
Source: https://huggingface.co/docs/transformers/main/en/quantization/contribute
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from glitchrun.model import experts
from glitchrun.model.quantized import SCHEMES, QuantizedLinear, import_bitsandbytes

METHOD = "glitchrun"
_ROUTERS = ("gate", "router", "shared_expert_gate")
"""Linear layers that choose experts: a few rows, and a wrong choice costs more than it saves."""

_READ = re.compile(
    r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|data)\b)(?!\s*,\s*$)", re.MULTILINE
)


class WeightOnlyConfig(QuantizationConfigMixin):
    """What `from_pretrained(quantization_config=...)` takes to have weights held in `scheme`."""

    def __init__(self, scheme: str) -> None:
        super().__init__(quant_method=METHOD)
        self.scheme = scheme


class WeightOnlyQuantizer(HfQuantizer):
    """Quantizes linear layers and fused experts; embeddings, head, norms and routers stay."""

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
        if experts.is_fused_weight(module, name):
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
    """Names of the layers whose weight a module multiplies by itself, without calling the layer.

    Mamba's and Jamba's step sizes, LongCat's router, Reformer's queries: a quantized layer could
    only give its codes there. Read off the module's source; a weight alone on its line is handed to
    a fused kernel, which is for training.
    """
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # no source, as in an interpreter
        return frozenset()
    return frozenset(_READ.findall(source))


class _Quantize(ConversionOps):
    """Takes the finished weights of one parameter and puts them into the model quantized."""

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
        return {}  # nothing is left for the loader to put anywhere

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
            # GPT-2 and its like initialize a layer's weight from the module above it.
            linear._is_hf_initialized = linear.weight._is_hf_initialized = True
            model.set_submodule(path, linear)
        else:
            experts.put_quantized(module, name, weights, self.kind)


def register() -> None:
    """Make the quantizer known to transformers; calling it again changes nothing."""
    import_bitsandbytes()
    experts.register()
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, WeightOnlyConfig)
    auto.AUTO_QUANTIZER_MAPPING.setdefault(METHOD, WeightOnlyQuantizer)
