"""Where a model's files are and what their headers say. No torch, no transformers."""

from glitchrun.checkpoint.resolve import Checkpoint, fetch, fetch_tokenizer, resolve

__all__ = ["Checkpoint", "fetch", "fetch_tokenizer", "resolve"]
