"""Loads the tokenizer of a checkpoint folder or a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from glitchrun.boundary import first_line, foreign_errors, install_command
from glitchrun.checkpoint import fetch_tokenizer, resolve
from glitchrun.checkpoint.cache_folder import cache_folder
from glitchrun.checkpoint.language_part import text_settings
from glitchrun.checkpoint.resolve import expanded, read_json
from glitchrun.errors import ModelUnavailable
from glitchrun.ledger.files import open_regular
from glitchrun.model.gguf_conversion import conversion_folder
from glitchrun.model.gguf_tokenizer import gguf_tokenizer
from glitchrun.model.library_messages import quiet_libraries

_MOST_GROWTH = 100
"""Characters for each of a text; a tokenizer that writes a line feed as `<0x0A>` needs 6."""
_REPLACES = re.compile(rb'"type"\s*:\s*"(Replace|Prepend)"|\\u00[4-7]')
"""A step that replaces text, or an escaped letter, which may hide one: nothing else escapes
letters."""
_MOST_BYTE_LEVELS = 8
"""Mentions of ByteLevel without a chain of them. A tokenizer has one in each of its four parts."""
_EMPTY = re.compile(r"[*?$]|(?<!\[)\^|\\[bBAzZGKyY]|\{[0,]|(^|[(|])\||\|($|\))|\(\)")
"""Parts of regular expressions that may match no character."""
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def tokenizer_of(path: str) -> tuple[Any, int]:
    """A model's tokenizer and the number of rows of its vocabulary, without the weights.

    `path` is a value of `model.path`, or a folder that has a tokenizer but no model. The rows are
    those of the embedding in config.json, or else the tokenizer's entries. An embedding can have
    more rows than the tokenizer has entries.

    Raises ModelUnavailable, naming the value and the remedy.
    """
    folder = expanded(path)
    if not any((folder / name).is_file() for name in _FILES):
        checkpoint = fetch_tokenizer(resolve(path))
        assert checkpoint.path is not None  # fetch_tokenizer guarantees it
        if checkpoint.kind == "gguf":
            with quiet_libraries():
                tokenizer = gguf_tokenizer(checkpoint.path)
            return tokenizer, len(tokenizer)
        folder = checkpoint.path
    with quiet_libraries():
        tokenizer = load_tokenizer(folder)
    return tokenizer, max(len(tokenizer), _rows(folder))


def checkpoint_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint folder, or of a GGUF file.

    For a GGUF file, it comes from the conversion if there is one, else from the file, which takes
    seconds.

    Raises ModelUnavailable where it cannot be read.
    """
    if path.is_dir():
        with quiet_libraries():
            return load_tokenizer(path, trust_remote_code=trust_remote_code)
    folder = conversion_folder(path, cache_folder())
    with quiet_libraries():
        return load_tokenizer(folder) if folder.is_dir() else gguf_tokenizer(path)


def _rows(folder: Path) -> int:
    """`vocab_size` in a folder's config.json; 0 if it is not set."""
    config = folder / "config.json"
    if not config.is_file():  # a folder with a tokenizer alone
        return 0
    rows = text_settings(read_json(config)).get("vocab_size")
    return rows if type(rows) is int else 0


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `folder`; nothing is downloaded.

    Raises ModelUnavailable where it is missing, its files are damaged, or it multiplies texts.
    """

    def refused(error: Exception) -> ModelUnavailable:
        remedy = "the folder needs tokenizer.json, or tokenizer.model with tokenizer_config.json"
        command = install_command(error) if isinstance(error, ImportError) else None
        if command:
            remedy = f"install the missing package with: {command}"
        elif not trust_remote_code and "trust_remote_code" in str(error):
            remedy = (
                "it has code of its own; set model.trust_remote_code: true if you trust its source"
            )
        return ModelUnavailable(
            f"model.path {str(folder)!r}: its tokenizer cannot be loaded "
            f"({first_line(error)}); {remedy}"
        )

    _check_growth(folder / "tokenizer.json")
    with foreign_errors(refused):
        return _tokenizer_class(folder).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            # None is the default. Passed explicitly, it keeps AutoTokenizer from importing
            # mistral-common for Mistral models, which fails if tiktoken is not installed.
            fix_mistral_regex=None,
        )


def _check_growth(path: Path) -> None:
    """Refuses a tokenizer.json whose replacements multiply the length of a text. A chain of them
    makes gigabytes of a word, and the library ends the process where memory runs out."""
    try:
        with open_regular(path) as file:
            data = file.read()
        # Reading a large vocabulary takes half a second, and most tokenizers replace nothing.
        may_grow = _REPLACES.search(data) or data.count(b"ByteLevel") > _MOST_BYTE_LEVELS
        parts = json.loads(data) if may_grow else {}
    except (OSError, ValueError, RecursionError):  # a missing file, or one that loading refuses
        return
    for name in ("normalizer", "decoder") if isinstance(parts, dict) else ():
        if _multiplies(parts.get(name)):
            raise ModelUnavailable(
                f"{path}: its {name} can make a text more than {_MOST_GROWTH} times as long, which "
                "no tokenizer needs: restore the file"
            )


def _multiplies(part: Any) -> bool:
    """Whether a normalizer or decoder may make more than `_MOST_GROWTH` characters of one.

    From the last step to the first, so that the text which a step adds counts as what the steps
    after it make of this text. Steps that replace different characters do not multiply each other.
    """
    made: dict[str, int] = {}
    other = most = 1  # what is made of a character that is not in `made`, and of any
    for step in _steps_backwards(part):
        pattern = step.get("pattern")
        added = step.get("prepend") if pattern is None else step.get("content")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        if step.get("type") == "ByteLevel":  # bytes of a character become characters
            made, other = {}, 4 * most
        elif isinstance(added, str) and added:
            more = sum(made.get(one, other) for one in added)
            if isinstance(text, str) and text:
                made[text[0]] = max(more, made.get(text[0], other))
            elif pattern is None or _may_be_empty(pattern):
                made, other = {one: count + more for one, count in made.items()}, other + more
                more += most
            elif more > other:
                made, other = {one: max(count, more) for one, count in made.items()}, more
            most = max(most, more)
        most = max(most, other)
        if most > _MOST_GROWTH:
            return True
    return False


def _steps_backwards(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or decoder, the one applied last first."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            waiting += [one for value in step.values() if isinstance(value, list) for one in value]
            yield step


def _may_be_empty(pattern: Any) -> bool:
    """Whether a pattern may match between two characters, so that replacing it adds text."""
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    return not isinstance(found, str) or not found or bool(_EMPTY.search(found))


def _tokenizer_class(folder: Path) -> Any:
    """AutoTokenizer, or LlamaTokenizer for a folder with only a SentencePiece model.

    transformers 5 ignores the class in tokenizer_config.json there. It reads a Mixtral's
    tokenizer.model into a generic class that loses the leading space ("Hello" for "▁Hello").
    """
    config = folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").exists() or not config.exists():
        return transformers.AutoTokenizer
    name = read_json(config).get("tokenizer_class")
    named = getattr(transformers, name, None) if name == "LlamaTokenizer" else None
    return named or transformers.AutoTokenizer
