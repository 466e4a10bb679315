"""Checks that the embedding has a row for every id of a prompt.

If tokens were added to the tokenizer and the embedding was not resized, ids without a row raise an
IndexError on a CPU and fail a device assertion on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

from glitchrun.errors import PreflightError
from glitchrun.prompts.tokenizer import Tokenizer


def missing_rows(ids: Iterable[int], rows: int) -> list[int]:
    """The ids that have no row, each once, ascending."""
    return sorted({one for one in ids if one >= rows})


def check_rows(ids: Iterable[int], rows: int, tokenizer: Tokenizer, what: str) -> None:
    """Raises PreflightError where an id has no row of the embedding.

    Args:
        ids: The ids to check.
        rows: Number of rows of the embedding.
        tokenizer: Gives the names of the ids.
        what: Where the ids come from, as the subject of the message: `probe repeat in the template
            chatml`.
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
    """A token for a message, also where the model has no row for it."""
    piece = tokenizer.convert_ids_to_tokens([token_id])[0]
    return f"{piece!r} (id {token_id})"
