"""A loaded model: the module, its tokenizer, and what loading took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from glitchrun.errors import ModelUnavailable
from glitchrun.plan.positions import Positions, positions

_BLOCK_ROWS = 8192


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model in eval mode with frozen parameters.

    Gradients flow to its inputs (`inputs_embeds`) in every quantization.
    """

    module: Any
    """The transformers model: `module(input_ids=..., ...)` gives logits `(B, T, V)`."""
    tokenizer: Any
    config: Any
    device: torch.device
    """The device of inputs; with `max_memory` the first of several."""
    dtype: str
    """torch's name (`bfloat16`) of the dtype of activations and unquantized weights."""
    quantization: str
    """`model.quantization`; for weights quantized on disk, the format and ` (as stored)`,
    or what it was dequantized to."""
    load_seconds: float
    """Wall time in seconds, including a GGUF file's conversion, excluding imports of libraries."""
    peak_bytes: int
    """Peak increase of memory while loading, in bytes; see `memory_use.watch_peak`."""
    bytes_by_dtype: Mapping[str, int]
    """Bytes of weights and buffers; see `memory_use.bytes_by_dtype`."""
    unquantized: tuple[str, ...]
    """Large weights that are not quantized, except embedding and head."""
    architecture: str
    """Class name, such as `MixtralForCausalLM`."""
    tokenizer_note: str = ""
    """For a GGUF file: the pre-tokenizer of the rebuilt tokenizer and where its name comes from."""
    cache_note: str = ""
    """What was wrong with weights kept in the cache, and what was done; empty for nothing."""
    residency: str = "resident"
    """`resident`, or `streamed` for a `model.streamed.StreamedModel`."""
    bytes_read: list[int] = field(default_factory=lambda: [0])
    """Bytes that a streamed model has read from its files so far, as the only item."""

    @property
    def input_embeddings(self) -> torch.Tensor:
        """The input embedding `(V, H)`.

        Raises ModelUnavailable for a model that has no single embedding matrix.
        """
        weight = getattr(self.module.get_input_embeddings(), "weight", None)
        if not isinstance(weight, torch.Tensor):
            raise ModelUnavailable(
                f"{self.architecture} has no single input embedding matrix, so it is not a "
                "language model over text tokens; set model.path to one"
            )
        return weight

    @property
    def output_embeddings(self) -> torch.Tensor:
        """The output matrix `(V, H)`; the input embedding itself where the two are tied."""
        head = self.module.get_output_embeddings()
        if head is None:
            return self.input_embeddings
        weight: torch.Tensor = head.weight
        # With max_memory, the head may be in main memory or on disk and be loaded for each pass.
        return head._hf_hook.weights_map["weight"] if weight.device.type == "meta" else weight

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of activations, as torch's object."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding; may exceed the tokenizer's size."""
        return int(self.input_embeddings.shape[0])

    @property
    def hidden_size(self) -> int:
        """Columns of the input embedding."""
        return int(self.input_embeddings.shape[1])

    def embedding_blocks(self) -> Iterator[torch.Tensor]:
        """Yields the input embedding in blocks of rows, `(R, H)` each, without a copy."""
        yield from self.input_embeddings.split(_BLOCK_ROWS)

    def head_blocks(self) -> Iterator[torch.Tensor]:
        """Yields the output matrix in blocks of rows, `(R, H)` each, without a copy."""
        yield from self.output_embeddings.split(_BLOCK_ROWS)

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the input embedding itself."""
        return self.output_embeddings.data_ptr() == self.input_embeddings.data_ptr()

    @property
    def positions(self) -> Positions | None:
        """The limit of the length of a text; None where it is unknown."""
        tensors = (*self.module.named_parameters(), *self.module.named_buffers())
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
        return positions(self.config.get_text_config(decoder=True).to_dict(), shapes)

    @property
    def end_ids(self) -> frozenset[int]:
        """End-of-text ids of the model's generation settings."""
        ids = self.module.generation_config.eos_token_id
        return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)

    @property
    def bytes(self) -> int:
        """Bytes of weights and buffers, including quantization scales."""
        return sum(self.bytes_by_dtype.values())
