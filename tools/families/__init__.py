"""Every family of causal language models that transformers knows, built small and tried.

small.py       a configuration of a few layers and some thousand weights
trial.py       the engine's results, compared with plain forward passes
page.py        docs/models.md
"""
