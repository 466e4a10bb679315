"""The only importer of transformers and bitsandbytes: loading, quantization, the GGUF cache."""

from glitchrun.model.loaded import LoadedModel
from glitchrun.model.loading import checkpoint_folder, load
from glitchrun.model.tokenizer import load_tokenizer, tokenizer_of

__all__ = ["LoadedModel", "checkpoint_folder", "load", "load_tokenizer", "tokenizer_of"]
