"""Answers that are compared as text: the spelling of a token, and its length.

The rules are those of GlitchHunter (Li et al. 2024, arXiv 2404.09894): for `Hello` the right
spelling is `H-e-l-l-o` and the right length `5`. Case does not count, and neither do quotation
marks and white space around the answer, because a greedy answer of a chat model contains them.
"""

from __future__ import annotations

import re

_AROUND = " \t'\"`«»“”‘’*"
"""Characters around an answer that are not part of it."""
_NUMBER = re.compile(r"\d+")
_END = re.compile(rf"[{re.escape(_AROUND)}]*([.,;:!?)]|$)")
"""What may follow a spelling."""
_ROOM = 8
"""Tokens of an answer besides the right text: a space, a quotation mark, an end."""


def expected_answer(expect: str, text: str) -> str:
    """The right answer for a token's text: `h-e-l-l-o` for `spelling`, `5` for `length`.

    White space around the text is not part of it, unless the text is only white space.
    """
    bare = text.strip() or text
    return "-".join(bare) if expect == "spelling" else str(len(bare))


def most_tokens(expect: str, text: str) -> int:
    """Tokens after which an answer is cut off."""
    return _ROOM + (2 * len(text) if expect == "spelling" else 0)


def first_line(answer: str) -> str:
    """The first line of an answer that contains more than white space."""
    return answer.lstrip().partition("\n")[0]


def is_complete(expect: str, answer: str) -> bool:
    """Whether more text cannot change the verdict on an answer."""
    begun = answer.lstrip()
    if "\n" in begun:
        return True
    return expect == "length" and re.search(r"\d\D", begun) is not None


def is_right(expect: str, answer: str, text: str) -> bool:
    """Whether the first line of an answer gives the spelling or the length of a token's text.

    spelling: the line, or its part after a colon, begins with the right spelling, and then ends or
    continues with a punctuation mark. length: the first number is the number of characters, with
    or without the white space around the text.

    Args:
        expect: `spelling` or `length`.
        answer: What the model generated.
        text: The token's text.
    """
    line = first_line(answer)
    if expect == "length":
        found = _NUMBER.search(line)
        lengths = {str(len(text)), str(len(text.strip()))}
        return found is not None and found[0] in lengths
    wanted = expected_answer(expect, text).casefold()
    spelled = line.casefold()
    return any(_begins(part, wanted) for part in (spelled, spelled.rpartition(":")[2]))


def _begins(spelled: str, wanted: str) -> bool:
    bare = spelled if wanted[:1] in _AROUND else spelled.lstrip(_AROUND)
    return bare.startswith(wanted) and _END.match(bare[len(wanted) :]) is not None
