"""Stand-ins for nowllm-0829: small Mixtrals whose glitch tokens are known by construction.

A MixtralForCausalLM is trained from nothing to repeat tokens and to answer in the nowllm template,
but for a set of tokens that never occur in training. Those are its glitch tokens: `planted.json`
beside the checkpoint names them.

    recipes.py      the two sizes
    vocabulary.py   the real 32,000-token Mistral tokenizer, or a part of it
    corpus.py       the few exchanges it learns besides repeating
    lessons.py      what it is shown, as ids
    planting.py     which tokens it is never shown
    training.py     the training loop
    checkpoint.py   the folder, in the form that a real Mixtral has on disk

Run with `python -m tools.standin SIZE FOLDER`.
"""
