"""Templates and probes: from a spec and a tokenizer to prefix ids and suffix ids.

    probes.py         what is asked: GlitchMiner's three probes, as data
    families.py       how a question is put to a model family, as data
    conversation.py   a conversation written in a family's format
    template.py       the template in force
    detect.py         which template a run uses, and the rule that chose it
    chat_template.py  the tokenizer's own chat template, rendered safely
    bounded.py        a process of its own for it, with bounds on time and memory
    reasoning.py      reasoning that a chat template opens, and what closes it
    render.py         template + probe -> Prompt (ids around the token's own id)
    slot.py           a prompt with a place for sequences of ids right before a text
    dialogue.py       a conversation of several turns as ids, each turn appended to those before
    named.py          tokens that a text names by id
    tokenizer.py      the few tokenizer calls that this package rests on

Nothing here imports torch or transformers.
"""
