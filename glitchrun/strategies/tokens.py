"""Token ids from files of results."""

from __future__ import annotations

import logging
from pathlib import Path

from glitchrun.errors import RunError
from glitchrun.imports import ImportedFile, read
from glitchrun.prompts.tokenizer import Tokenizer
from glitchrun.vocabulary import vocabulary_fit

logger = logging.getLogger(__name__)


def read_ids(path: Path) -> list[int]:
    """Token ids from a result file of any format that `glitchrun import` reads, in its order.

    Where the file has verdicts, only tokens found to be glitches are taken: confirmed ones where
    they were sampled.

    Raises:
        RunError: the file cannot be read, or names no tokens.
    """
    return _selected(_tokens(path))


def read_fitting_ids(path: Path, tokenizer: Tokenizer, rows: int, model: str) -> list[int]:
    """As `read_ids`, from a file whose texts are what the tokenizer of `model`, with `rows`
    entries, holds under their ids.

    Raises:
        RunError: also where the ids are those of another vocabulary.
    """
    found = _tokens(path)
    fits = vocabulary_fit.check_fit(found.tokens, tokenizer, rows)
    if vocabulary_fit.misfits(fits):
        remedy = (
            "run the model that the file was made with, or take over what fits with "
            f"glitchrun import {path.name} --model PATH --mismatches drop"
        )
        raise vocabulary_fit.misfit_error(
            str(path), found.source.claimed_model, model, fits, remedy
        )
    taken = _selected(found)
    if len(taken) < len(found.tokens):
        logger.warning(
            "%s: %s of its %s tokens are taken: those confirmed, called a glitch or only listed",
            path.name,
            f"{len(taken):,}",
            f"{len(found.tokens):,}",
        )
    return taken


def _tokens(path: Path) -> ImportedFile:
    found = read(path)
    if not found.tokens:
        raise RunError(
            f"{path}: holds no token ids; expected a list of ids, or objects with 'token_id'"
        )
    return found


def _selected(found: ImportedFile) -> list[int]:
    return [token.id for token in found.tokens if token.selected]
