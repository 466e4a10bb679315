"""The tokenizer of a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from glitchrun.boundary import first_line, foreign_errors, install_command
from glitchrun.checkpoint import fetch_tokenizer, resolve
from glitchrun.checkpoint.language_part import text_settings
from glitchrun.checkpoint.model_cache import cache_folder
from glitchrun.checkpoint.resolve import expanded, read_json
from glitchrun.errors import ModelUnavailable
from glitchrun.model.gguf_cache import conversion
from glitchrun.model.gguf_tokenizer import gguf_tokenizer
from glitchrun.model.noise import quiet

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def tokenizer_of(path: str) -> tuple[Any, int]:
    """The tokenizer of a model, and the rows of its vocabulary, without the model's weights.

    `path` is whatever `model.path` takes, or a folder that holds a tokenizer and no model. Rows
    are those of the embedding where config.json says how many: it may have more than the tokenizer
    has entries.

    Raises ModelUnavailable, naming the value and the remedy.
    """
    folder = expanded(path)
    if not any((folder / name).is_file() for name in _FILES):
        checkpoint = fetch_tokenizer(resolve(path))
        assert checkpoint.path is not None  # fetch_tokenizer sees to it
        if checkpoint.kind == "gguf":
            with quiet():
                tokenizer = gguf_tokenizer(checkpoint.path)
            return tokenizer, len(tokenizer)
        folder = checkpoint.path
    with quiet():
        tokenizer = load_tokenizer(folder)
    return tokenizer, max(len(tokenizer), _rows(folder))


def checkpoint_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint's folder, or of a GGUF file: from its conversion where there is
    one, else read from the file, which takes seconds.

    Raises ModelUnavailable where it cannot be read.
    """
    if path.is_dir():
        with quiet():
            return load_tokenizer(path, trust_remote_code=trust_remote_code)
    folder = conversion(path, cache_folder())
    with quiet():
        return load_tokenizer(folder) if folder.is_dir() else gguf_tokenizer(path)


def _rows(folder: Path) -> int:
    """`vocab_size` of a folder's config.json; 0 where it is not said."""
    config = folder / "config.json"
    if not config.is_file():  # a folder with a tokenizer alone
        return 0
    said = text_settings(read_json(config)).get("vocab_size")
    return said if type(said) is int else 0


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `folder`, never fetched from elsewhere.

    Raises ModelUnavailable when there is none or its files are damaged.
    """

    def refused(error: Exception) -> ModelUnavailable:
        command = install_command(error) if isinstance(error, ImportError) else None
        return ModelUnavailable(
            f"model.path {str(folder)!r}: its tokenizer cannot be loaded "
            f"({first_line(error)}); "
            + (
                f"install the missing package with: {command}"
                if command
                else "the folder needs tokenizer.json, or tokenizer.model with "
                "tokenizer_config.json"
            )
        )

    with foreign_errors(refused):
        return _tokenizer_class(folder).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            # None is the default; naming it keeps AutoTokenizer from importing mistral-common for
            # Mistral models, which fails where that package is there without tiktoken.
            fix_mistral_regex=None,
        )


def _tokenizer_class(folder: Path) -> Any:
    """The class to load with: AutoTokenizer, but for a bare SentencePiece model its own class.

    transformers 5 reads a Mixtral's tokenizer.model through a generic class that loses the
    SentencePiece space in front ("Hello" instead of "▁Hello"), against the class that
    tokenizer_config.json names.
    """
    config = folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").exists() or not config.exists():
        return transformers.AutoTokenizer
    name = read_json(config).get("tokenizer_class")
    named = getattr(transformers, name, None) if name == "LlamaTokenizer" else None
    return named or transformers.AutoTokenizer
