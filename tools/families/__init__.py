"""Every family of causal language models that transformers knows, built small and tried.

small.py       a configuration of a few layers and some thousand weights
trial.py       what the engine makes of it, against plain forward passes
page.py        docs/models.md
"""
