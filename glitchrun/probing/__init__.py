"""The engine: prompts as token ids, one shared prefix cache, batched verification and sampling.

backend_selection.py   which backend runs a model: compares logits with its plain forward pass
backend.py             the generic backend, and the interface of every backend
fast_backend.py        the fast backend for models of the Llama layout, over `fast/`
model_call.py          calls a model's forward pass; selects, repeats and joins rows of its cache
verifier.py            does the model repeat the token? On top of logit_statistics.py
sampling.py            how often does it? The decode loop, over token_choice.py
batch_invariance.py    batch shapes that keep attempts independent of their batch
frozen_suffix.py       the screen: two positions per token
sequence_scoring.py    probabilities of and after sequences
memory_limits.py       rows of a pass, and the retry after memory ran out
"""
