"""Prompts: from a template, a probe and a tokenizer to ids around the place of a token.

    conversation.py   writes a conversation in a family's format (`spec/templates.py`)
    template.py       the template of a run
    detect.py         chooses the template, and records the rule that chose it
    chat_template.py  the tokenizer's own chat template
    bounded.py        runs a chat template with bounds on time and memory
    reasoning.py      finds reasoning that a chat template opens, and closes it
    render.py         a probe in a template -> Prompt
    slot.py           a prompt with a place for sequences of tokens before a text
    dialogue.py       a conversation of several turns as ids
    tokenizer.py      the tokenizer calls of this package

Nothing here imports torch or transformers.
"""
