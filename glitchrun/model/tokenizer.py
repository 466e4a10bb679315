"""The tokenizer of a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from glitchrun.errors import ModelUnavailable
from glitchrun.model.noise import first_line


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `folder`, never fetched from elsewhere.

    Raises ModelUnavailable when there is none or its files are damaged.
    """
    try:
        return _tokenizer_class(folder).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            # None is the default; naming it keeps AutoTokenizer from importing mistral-common for
            # Mistral models, which fails where that package is there without tiktoken.
            fix_mistral_regex=None,
        )
    # `tokenizers` raises a bare Exception for a broken tokenizer.json.
    except Exception as error:
        raise ModelUnavailable(
            f"model.path {str(folder)!r}: its tokenizer cannot be loaded "
            f"({first_line(error)}); "
            "the folder needs tokenizer.json, or tokenizer.model with tokenizer_config.json"
        ) from error


def _tokenizer_class(folder: Path) -> Any:
    """The class to load with: AutoTokenizer, but for a bare SentencePiece model its own class.

    transformers 5 reads a Mixtral's tokenizer.model through a generic class that loses the
    SentencePiece space in front ("Hello" instead of "▁Hello"), against the class that
    tokenizer_config.json names.
    """
    config = folder / "tokenizer_config.json"
    if (folder / "tokenizer.json").exists() or not config.exists():
        return transformers.AutoTokenizer
    name = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
    named = getattr(transformers, name, None) if name == "LlamaTokenizer" else None
    return named or transformers.AutoTokenizer
