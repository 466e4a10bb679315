"""Builds a small model of every family of causal language models in transformers and tests it.

small.py       a small random model of each family
trial.py       compares the engine's results with plain forward passes
page.py        writes docs/models.md
"""
