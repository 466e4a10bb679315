"""Whether a model has a row of its embedding for every id that is put in front of it.

A tokenizer to which tokens were added, beside an embedding that was never resized, writes ids that
no pass can read: an IndexError on a CPU, a failed assertion of the device on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable

from glitchrun.errors import PreflightError
from glitchrun.prompts.tokenizer import Tokenizer


def beyond(ids: Iterable[int], rows: int) -> list[int]:
    """The ids that have no row, each once, ascending."""
    return sorted({one for one in ids if one >= rows})


def hold(ids: Iterable[int], rows: int, tokenizer: Tokenizer, what: str) -> None:
    """Raises PreflightError where an id has no row of the embedding.

    Args:
        ids: What is put in front of the model.
        rows: How many rows the embedding has.
        tokenizer: What the ids are named by.
        what: Where the ids come from, as the subject of the message: `probe repeat in the template
            chatml`.
    """
    lacking = beyond(ids, rows)
    if not lacking:
        return
    names = ", ".join(named(one, tokenizer) for one in lacking[:5])
    raise PreflightError(
        f"{what} holds {names}, and this model's embedding has {rows:,} rows (ids up to "
        f"{rows - 1}): tokens were added to its tokenizer, and the embedding was not resized. "
        f"Resize it (model.resize_token_embeddings({max(len(tokenizer), lacking[-1] + 1)}), then "
        "save the model), or choose a template and texts without these tokens "
        "(`glitchrun list templates`, or template: raw)"
    )


def named(token_id: int, tokenizer: Tokenizer) -> str:
    """A token for a message, also where the model has no row for it."""
    piece = tokenizer.convert_ids_to_tokens([token_id])[0]
    return f"{piece!r} (id {token_id})"
