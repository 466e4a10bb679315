"""Loads models and tokenizers; the only package that imports transformers and bitsandbytes."""

from glitchrun.model.loaded import LoadedModel
from glitchrun.model.loading import checkpoint_folder, load
from glitchrun.model.tokenizer_loading import load_tokenizer, tokenizer_of

__all__ = ["LoadedModel", "checkpoint_folder", "load", "load_tokenizer", "tokenizer_of"]
