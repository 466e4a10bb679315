"""Loads models and tokenizers; the only package that imports transformers and bitsandbytes."""

from typing import TYPE_CHECKING, Any

from glitchrun.model.loaded import LoadedModel

if TYPE_CHECKING:
    from glitchrun.model.loading import checkpoint_folder, load
    from glitchrun.model.tokenizer_loading import load_tokenizer, tokenizer_of

__all__ = ["LoadedModel", "checkpoint_folder", "load", "load_tokenizer", "tokenizer_of"]
_TOKENIZERS = ("load_tokenizer", "tokenizer_of")


def __getattr__(name: str) -> Any:
    """Imports transformers when it is needed: a run that reuses every step needs no model."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from glitchrun.model import loading, tokenizer_loading

    return getattr(tokenizer_loading if name in _TOKENIZERS else loading, name)
