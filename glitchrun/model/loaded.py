"""What loading gives: the module, its tokenizer, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glitchrun.errors import ModelUnavailable
from glitchrun.plan.positions import Positions, positions


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model in eval mode whose parameters take no gradients.

    Gradients flow through it to its inputs (`inputs_embeds`) in every quantization.
    """

    module: Any
    """The transformers model: `module(input_ids=..., ...)` gives logits (B, T, V)."""
    tokenizer: Any
    config: Any
    device: torch.device
    """Where inputs go; with `max_memory` the first device of several."""
    dtype: str
    """Of activations and of weights that are not quantized, as torch names it: `bfloat16`."""
    quantization: str
    """As asked for; for weights already quantized on disk their method and ` (as stored)`."""
    load_seconds: float
    """Wall time of the whole loading, with a GGUF's conversion, without imports of libraries."""
    peak_bytes: int
    """Most bytes in use while loading, above what was in use before; see `device.watch_peak`."""
    census: Mapping[str, int]
    """Bytes held by storage; see `census.take`."""
    unquantized: tuple[str, ...]
    """Large weights that quantization left alone, embeddings and head aside."""
    architecture: str
    tokenizer_note: str = ""
    """Of a GGUF file: the split of the rebuilt tokenizer, and the source that named it."""

    @property
    def input_embeddings(self) -> torch.Tensor:
        """The input embedding matrix, (V, H).

        Raises ModelUnavailable for a model that has no single embedding matrix.
        """
        weight = getattr(self.module.get_input_embeddings(), "weight", None)
        if not isinstance(weight, torch.Tensor):
            raise ModelUnavailable(
                f"{self.architecture} has no single input embedding matrix, so it is no language "
                "model over text tokens; set model.path to one"
            )
        return weight

    @property
    def output_embeddings(self) -> torch.Tensor:
        """The output matrix, (V, H); the input embedding itself where they are tied."""
        head = self.module.get_output_embeddings()
        if head is None:
            return self.input_embeddings
        weight: torch.Tensor = head.weight
        # Under max_memory the head may lie in main memory or on disk, and come for each pass.
        return head._hf_hook.weights_map["weight"] if weight.device.type == "meta" else weight

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which activations are multiplied; `dtype` as torch has it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding; may exceed the tokenizer's size."""
        return int(self.input_embeddings.shape[0])

    @property
    def positions(self) -> Positions | None:
        """How long a text it takes; None where no limit is known."""
        tensors = (*self.module.named_parameters(), *self.module.named_buffers())
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
        return positions(self.config.get_text_config(decoder=True).to_dict(), shapes)

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a text by the model's own generation settings."""
        ends = self.module.generation_config.eos_token_id
        return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)

    @property
    def bytes(self) -> int:
        """Bytes held by weights and buffers, quantization scales included."""
        return sum(self.census.values())
