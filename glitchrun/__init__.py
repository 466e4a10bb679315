"""Declarative experiments on glitch tokens in language models."""

__version__ = "0.1.0"
