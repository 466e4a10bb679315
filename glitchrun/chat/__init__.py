"""A conversation with the model of a spec.

    conversation.py ChatSession: turns, what ended them, the next-token table, the KV cache
    detokenizer.py  ids to text as they arrive
    loop.py         reads lines, answers them, and carries out `/` commands

Nothing here reads a terminal or handles signals: `cli/chat.py` does.
"""
