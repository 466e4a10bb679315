"""Stand-ins for nowllm-0829: small Mixtrals whose glitch tokens are known by construction.

A MixtralForCausalLM is trained from scratch to repeat tokens and to answer in the nowllm template.
A set of tokens never occurs in training. These planted tokens are its glitch tokens, and
`planted.json` beside the checkpoint lists them.

    recipes.py      the two sizes
    vocabulary.py   the real Mistral tokenizer with 32,000 tokens, or a part of it
    corpus.py       the exchanges that it learns besides repeating
    lessons.py      the training data as ids
    planting.py     the choice of the planted tokens
    forward.py      a faster forward pass for training
    training.py     the training loop
    checkpoint.py   the folder, in the format of a published Mixtral

Run with `python -m tools.standin SIZE FOLDER`.
"""
