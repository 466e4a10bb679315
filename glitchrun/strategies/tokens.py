"""Token ids from files of results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glitchrun.errors import RunError
from glitchrun.events import Batch, Token
from glitchrun.imports import ImportedFile, read
from glitchrun.prompts.tokenizer import Tokenizer
from glitchrun.vocabulary import vocabulary_fit

logger = logging.getLogger(__name__)


def found_tokens(earlier: Mapping[str, Sequence[Batch]], source: Mapping[str, Any]) -> list[Token]:
    """The tokens that `tokens: {from: ..., select: ...}` takes from earlier steps, each once.

    Args:
        earlier: The judged batches of earlier steps by step id.
        source: The parameter.
    """
    steps = [source["from"]] if isinstance(source["from"], str) else source["from"]
    select = source.get("select", "glitch")
    facts = (fact for step in steps for batch in earlier[step] for fact in batch.token_facts)
    found = [fact.token for fact in facts if select == "all" or fact.flagged]
    return list({token.id: token for token in found}.values())


def has_phrases(earlier: Mapping[str, Sequence[Batch]], source: Mapping[str, Any]) -> bool:
    """Whether a step's `tokens` names phrases, or earlier steps that examined phrases."""
    if "phrases" in source:
        return True
    steps = source.get("from", ())
    return any(
        entry.table == "phrases"
        for step in ([steps] if isinstance(steps, str) else steps)
        for batch in earlier[step]
        for entry in batch.entries
    )


def read_ids(path: Path) -> list[int]:
    """Token ids from a result file of any format that `glitchrun import` reads, in its order.

    From a file with verdicts it takes the glitch tokens only, and from a file with samples the
    confirmed ones.

    Raises:
        RunError: the file cannot be read, or names no tokens.
    """
    return _selected(_tokens(path))


def read_fitting_ids(path: Path, tokenizer: Tokenizer, rows: int, model: str) -> list[int]:
    """As `read_ids`, and checks the file's texts against the `rows` entries of the tokenizer.

    Raises:
        RunError: the file cannot be read, names no tokens, or belongs to another vocabulary.
    """
    found = _tokens(path)
    fits = vocabulary_fit.check_fit(found.tokens, tokenizer, rows)
    if vocabulary_fit.misfits(fits):
        remedy = (
            "run the model that the file belongs to, or import the tokens that fit with "
            f"glitchrun import {path.name} --model PATH --mismatches drop"
        )
        raise vocabulary_fit.misfit_error(
            str(path), found.source.claimed_model, model, fits, remedy
        )
    taken = [fit.token.id for fit in fits if fit.token.selected]
    if len(taken) < len(found.tokens):
        logger.warning(
            "%s: using %s of its %s tokens: those confirmed, flagged as glitches, or only listed",
            path.name,
            f"{len(taken):,}",
            f"{len(found.tokens):,}",
        )
    return taken


def _tokens(path: Path) -> ImportedFile:
    found = read(path)
    if not found.tokens:
        raise RunError(
            f"{path}: contains no token ids; expected a list of ids, or objects with 'token_id'"
        )
    return found


def _selected(found: ImportedFile) -> list[int]:
    return [token.id for token in found.tokens if token.selected]
