"""Prompts: turns a template, a probe and a tokenizer into ids.

    template.py         the template of a run, opening ids, the formats of the families
    detect.py           chooses the template, and records the rule that chose it
    chat_template.py    the tokenizer's own chat template
    bounded_process.py  runs a chat template with limits on time and memory
    reasoning.py        finds reasoning that a chat template opens, and closes it
    render.py           prompts of probes, of sequences before a text, and of a text
    dialogue.py         the turns of a chat as ids
    tokenizer.py        the tokenizer calls of this package

Nothing here imports torch or transformers.
"""
