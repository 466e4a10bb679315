"""Finds a model's files and reads their headers, without torch and transformers."""

from glitchrun.checkpoint.resolve import Checkpoint, fetch, fetch_tokenizer, resolve

__all__ = ["Checkpoint", "fetch", "fetch_tokenizer", "resolve"]
