"""Checks that the ids and texts of a result file belong to a tokenizer's vocabulary.

An id means nothing without its vocabulary, and the model that a file names can be wrong: glitcher's
own glitch_tokens.json names Llama-3.2-1B for ids of Mistral's vocabulary, and its audit then tested
18 ordinary words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from glitchrun.errors import RunError
from glitchrun.imports import ImportedToken
from glitchrun.prompts.tokenizer import Tokenizer, decode_inside, encode
from glitchrun.vocabulary.text import visible

FITS = {
    "same": "the text is that of the id, decoded or as stored in the vocabulary",
    "spaces": "the text differs from it only in leading or trailing spaces",
    "weak": "the text is equal, but contains U+FFFD, which represents any bytes",
    "unchecked": "the file has no text",
    "different": "the text is a different one",
    "outside": "the vocabulary has no such id, or no token with the text of an entry without id",
}
"""The ways in which an id and its text can fit a vocabulary."""
MISFITS = ("different", "outside")
_REPLACEMENT = "\ufffd"
_SPACES = str.maketrans({"▁": " ", "Ġ": " "})
"""The characters of SentencePiece and byte-level BPE for a space."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Fit:
    """A token of a file compared with the tokenizer."""

    token: ImportedToken
    fit: str
    """One of `FITS`."""
    here: str
    """The decoded text of the id; empty outside the vocabulary."""


def with_ids(
    tokens: Sequence[ImportedToken], tokenizer: Tokenizer, rows: int
) -> list[ImportedToken]:
    """The tokens, with the id of its text for each that the file names by its text alone.

    If several ids have the text, it is the id to which the tokenizer encodes the text, or else the
    lowest. A token whose text no id has keeps its number below 0.
    """
    texts = {token.text for token in tokens if token.id < 0}
    if not texts:
        return [*tokens]
    found: dict[str, list[int]] = {}
    for token_id, text in enumerate(decode_inside(tokenizer, [*range(min(rows, len(tokenizer)))])):
        if text in texts:
            found.setdefault(text, []).append(token_id)
    chosen = {text: _usual(ids, encode(tokenizer, text)) for text, ids in found.items()}
    return [
        replace(token, id=chosen.get(token.text or "", token.id)) if token.id < 0 else token
        for token in tokens
    ]


def _usual(ids: Sequence[int], encoded: Sequence[int]) -> int:
    return encoded[0] if len(encoded) == 1 and encoded[0] in ids else ids[0]


def check_fit(tokens: Sequence[ImportedToken], tokenizer: Tokenizer, rows: int) -> list[Fit]:
    """How each token fits a vocabulary of `rows` entries.

    Tokens without an id get that of their text first (`with_ids`). Case and line breaks count. A
    leading space does not, because tools that decode a SentencePiece entry alone lose it: `▁been`
    and `been` give the same text.
    """
    tokens = with_ids(tokens, tokenizer, rows)
    inside = [token.id for token in tokens if 0 <= token.id < rows]
    here = dict(zip(inside, decode_inside(tokenizer, inside), strict=True))
    alone = dict(zip(inside, _alone(tokenizer, inside), strict=True))
    pieces = {row: piece for piece, row in tokenizer.get_vocab().items() if row in here}
    return [
        Fit(token, "outside", "")
        if token.id not in here
        else Fit(token, _fit(token, here, (alone, pieces)), here[token.id])
        for token in tokens
    ]


def _alone(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Each id decoded by itself with the tokenizer's own settings, as most tools do."""
    return tokenizer.batch_decode([[one] for one in ids]) if ids else []


def _fit(token: ImportedToken, here: Mapping[int, str], others: Sequence[Mapping[int, str]]) -> str:
    known = [here[token.id], *(texts[token.id] for texts in others if token.id in texts)]
    if token.text is None:
        if token.visible is None:
            return "unchecked"
        return "same" if token.visible == visible(known[0]) else "different"
    if token.text in known:
        return "weak" if _REPLACEMENT in token.text else "same"
    return "spaces" if _bare(token.text) in {*map(_bare, known)} - {""} else "different"


def _bare(text: str) -> str:
    return text.translate(_SPACES).strip(" ")


def misfits(fits: Sequence[Fit]) -> list[Fit]:
    """The tokens that contradict the vocabulary."""
    return [fit for fit in fits if fit.fit in MISFITS]


def tallies(fits: Sequence[Fit]) -> dict[str, int]:
    """The number of tokens for every way of `FITS`."""
    return {way: sum(fit.fit == way for fit in fits) for way in FITS}


def misfit_error(
    file: str, claimed: str | None, model: str, fits: Sequence[Fit], remedy: str
) -> RunError:
    """The error for a file's misfits; it names the claimed and the given model and the remedy."""
    wrong = misfits(fits)
    lines = [f"{file}: {len(wrong)} of {len(fits)} tokens are not those of {model}:"]
    lines += [f"  {_difference(fit)}" for fit in wrong[:_SHOWN]]
    if len(wrong) > _SHOWN:
        lines.append(f"  … and {len(wrong) - _SHOWN} more")
    named = f"the file names {claimed!r}, which may be wrong; " if claimed else ""
    lines.append(f"{named}{remedy}")
    return RunError("\n".join(lines))


def _difference(fit: Fit) -> str:
    token = fit.token
    text = token.visible if token.text is None else visible(token.text)
    if token.id < 0:
        return f"{token.place}: «{text}» is no token here"
    there = f"id {token.id}" if text is None else f"id {token.id} is «{text}» in the file"
    here = "not in this vocabulary" if fit.fit == "outside" else f"«{visible(fit.here)}» here"
    return f"{token.place}: {there}, {here}"
