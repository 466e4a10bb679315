"""Tokenizer calls: encoding and decoding inside a text, tokens named by id, rows of the embedding.

`Tokenizer` declares what is used of transformers' PreTrainedTokenizerBase, so that this package
needs no import of transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from glitchrun.boundary import first_line, foreign_errors
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.spec.token_ids import BY_ID

ANCHOR = "«"
"""The anchor: a character that no vocabulary merges with letters. Text is encoded or decoded after
it to get the form that it has in the middle of a text. GlitchMiner uses the same one."""
_ANCHORS = (ANCHOR, "\n", ".", "a", "1")
# Stands for such a token while a template writes the text. Letters only: no template alters it.
_MARK = "Xglitchruntoken"


class Tokenizer(Protocol):
    """The attributes and methods of transformers' PreTrainedTokenizerBase that glitchrun uses."""

    bos_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    all_special_ids: list[int]
    chat_template: Any
    added_tokens_decoder: Mapping[int, Any]

    def __call__(self, text: list[str], **options: Any) -> Mapping[str, Any]: ...
    def __len__(self) -> int: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """The text of ids."""

    def batch_decode(self, ids: list[list[int]], **options: Any) -> list[str]:
        """The text of each list of ids."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        """The vocabulary entry of each id, None for an id without one."""

    def get_vocab(self) -> dict[str, int]:
        """The id of each vocabulary entry."""

    def get_chat_template(self) -> str:
        """The Jinja source of the chat template."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """The conversation, rendered by the chat template."""


def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Ids of a text unchanged: special tokens written in it are recognized, and none are added.

    Raises ModelUnavailable where the tokenizer fails on it, as the other functions here do.
    """
    with foreign_errors(_fails):
        return tuple(tokenizer.encode(text, add_special_tokens=False))


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts at once, in parallel where the tokenizer can."""
    if not texts:
        return []
    with foreign_errors(_fails):
        batch = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
    ids: list[list[int]] = batch["input_ids"]
    return ids


def encode_inside(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Ids of a text that continues another one.

    Differs from `encode` where the tokenizer puts a space in front of a text (SentencePiece's dummy
    prefix): the text is then encoded after an anchor, and the anchor's ids are removed.
    """
    alone = encode(tokenizer, text)
    if not text or not _adds_space(tokenizer):
        return alone
    for anchor in _ANCHORS:
        ids, both = encode(tokenizer, anchor), encode(tokenizer, anchor + text)
        if both[: len(ids)] == ids:
            return both[len(ids) :]
    return alone


def decode_inside(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each id as it reads in the middle of a text: `▁the` is " the".

    Bytes that are no character by themselves become U+FFFD.
    """
    return decode_runs_inside(tokenizer, [(one,) for one in ids])


def decode_runs_inside(tokenizer: Tokenizer, runs: Sequence[Sequence[int]]) -> list[str]:
    """`decode_inside` of several ids at a time: bytes that are a character together are one."""
    if not runs:  # transformers would make one text of no ids
        return []
    anchor = list(encode(tokenizer, ANCHOR))
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    with foreign_errors(_fails):
        before = tokenizer.decode(anchor, **options)
        texts = tokenizer.batch_decode([[*anchor, *run] for run in runs], **options)
    return [text.removeprefix(before) for text in texts]


def leading_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer prepends to a text: a BOS, GLM's `[gMASK] <sop>`. Ids that it
    appends (an EOS) are left out, because a prompt continues.
    """
    for text in ("a", "1", "the"):
        bare = encode(tokenizer, text)
        ids = tuple(tokenizer.encode(text, add_special_tokens=True))
        for start in range(len(ids) - len(bare) + 1):
            if bare and ids[start : start + len(bare)] == bare:
                return ids[:start]
    return ()


@dataclass(frozen=True, slots=True)
class Marked:
    """A text in which a mark replaces each token named by id."""

    text: str
    mark: str
    ids: tuple[int, ...]
    """The ids of these tokens, in order."""


def marked(text: str) -> Marked:
    """The text with a mark in place of each token that it names by id (`<#31415>`)."""
    mark = f"{_MARK}X"
    while mark in text:
        mark = f"{mark}X"
    return Marked(BY_ID.sub(mark, text), mark, tuple(map(int, BY_ID.findall(text))))


def as_text(tokenizer: Tokenizer, ids: Sequence[int], after: Sequence[str]) -> str:
    """The text of each id followed by its text in `after`. Ids with nothing between them are
    decoded together: parts of a character become one."""
    runs: list[list[int]] = []
    texts: list[str] = []
    for one, text in zip(ids, after, strict=True):
        if texts and not texts[-1]:
            runs[-1].append(one)
            texts[-1] = text
        else:
            runs.append([one])
            texts.append(text)
    read = decode_runs_inside(tokenizer, runs)
    return "".join(map("".join, zip(read, texts, strict=True)))


def without_ids(text: str, tokenizer: Tokenizer) -> str:
    """The text with the text of each token that it names by id (`<#31415>`)."""
    found = marked(text)
    before, *after = found.text.split(found.mark)
    return before + as_text(tokenizer, found.ids, after)


def joined(
    start: tuple[int, ...], ids: Sequence[int], texts: Sequence[str], tokenizer: Tokenizer
) -> tuple[int, ...]:
    """The ids `start`, then each token of `ids` followed by the ids of its text in `texts`."""
    for token_id, text in zip(ids, texts, strict=True):
        start = (*start, token_id, *encode_inside(tokenizer, text))
    return start


def missing_rows(ids: Iterable[int], rows: int) -> list[int]:
    """The ids without a row in an embedding of `rows` rows, each once, ascending."""
    return sorted({one for one in ids if one >= rows})


def check_rows(ids: Iterable[int], rows: int, tokenizer: Tokenizer, what: str) -> None:
    """Checks that the embedding has a row for every id.

    An id without a row raises an IndexError on a CPU and fails a device assertion on a GPU.

    Args:
        ids: The ids to check.
        rows: Number of rows of the embedding.
        tokenizer: Gives the names of the ids.
        what: Where the ids come from, as the subject of the message: `probe repeat in the template
            chatml`.

    Raises:
        PreflightError: an id has no row.
    """
    lacking = missing_rows(ids, rows)
    if not lacking:
        return
    names = ", ".join(describe_token(one, tokenizer) for one in lacking[:5])
    raise PreflightError(
        f"{what} contains {names}, but this model's embedding has {rows:,} rows (ids up to "
        f"{rows - 1}): tokens were added to its tokenizer, and the embedding was not resized. "
        f"Resize it (model.resize_token_embeddings({max(len(tokenizer), lacking[-1] + 1)}), then "
        "save the model), or choose a template and texts without these tokens "
        "(`glitchrun list templates`, or template: raw)"
    )


def describe_token(token_id: int, tokenizer: Tokenizer) -> str:
    """A token for a message, even if the model has no row for it."""
    piece = tokenizer.convert_ids_to_tokens([token_id])[0]
    return f"{piece!r} (id {token_id})"


def _adds_space(tokenizer: Tokenizer) -> bool:
    alone = tokenizer.encode("a", add_special_tokens=False)
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    # A first piece may be decoded without its space: look at it behind itself. The space may also
    # be a piece of its own, where the vocabulary has no `▁a`, or never chooses it.
    return bool(alone) and tokenizer.decode(alone * 2, **options).endswith(" a")


def _fails(error: Exception) -> ModelUnavailable:
    return ModelUnavailable(
        f"the model's tokenizer fails on a text ({first_line(error)}); its files are damaged or do "
        "not belong together: restore tokenizer.json and tokenizer_config.json of this model"
    )
