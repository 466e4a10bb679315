"""The names a spec may give as `template`; the formats behind them are in `prompts/families.py`.

They stand here, with what `validate` must know of them, because the spec layer may not import the
prompts. `tests/test_prompts_families.py` holds the two equal.
"""

TEMPLATE_NAMES = (
    "nowllm",
    "mistral",
    "llama2",
    "llama3",
    "llama3.1",
    "llama4",
    "chatml",
    "qwen",
    "gemma",
    "phi",
    "phi4",
    "harmony",
    "plain",
)
"""Known template families, in the order `glitchrun list templates` shows them."""

TEMPLATE_MODES = ("auto", "tokenizer", "raw")
"""Ways of choosing that are not a family: detect, the tokenizer's own, nothing around the text."""

WITHOUT_SYSTEM = ("nowllm", "mistral", "gemma", "raw")
"""Templates with no place for a system text: known without the model, as `auto`'s and
`tokenizer`'s choice is not."""
