"""A conversation with the model of a spec.

    session.py     Session: turns, what ended them, the next-token table
    transcript.py  the ids said so far, and the keys and values of those that were run
    stream.py      ids to text as they come
    commands.py    what a line that begins with `/` does
    loop.py        lines in, answers out

Nothing here reads a terminal or sets signals: `cli/chat.py` does.
"""
