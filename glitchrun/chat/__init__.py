"""A conversation with the model of a spec.

    conversation.py ChatSession: turns, what ended them, next-token table, KV cache, text of ids
    loop.py         reads lines, answers them, and carries out `/` commands

Nothing here reads a terminal or handles signals: `cli/chat.py` does.
"""
