"""Builds the tokenizer of a GGUF file from its metadata.

transformers also builds one, but it silently uses GPT-2's pre-tokenizer for names that it does not
know, splits control and user-defined tokens that are not spelled in the byte alphabet (such as
DeepSeek's), and ignores `ignore_merges` and `add_space_prefix`. Byte-level vocabularies (`gpt2`)
are therefore built here; those of SentencePiece (`llama`, `t5`, `gemma4`) come from transformers.
Both are compared with the file before they are used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glitchrun.checkpoint.gguf_header import read_gguf
from glitchrun.checkpoint.gguf_pretokenizers import NamedPreTokenizer, pretokenizer_of
from glitchrun.errors import MissingExtra, ModelUnavailable

log = logging.getLogger(__name__)

_TOKENS, _MERGES, _TYPES = (f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type"))
_BYTE_LEVEL = "gpt2"
_SENTENCEPIECE = "llama"
_RESPELLED = ("gemma", "gemma2", "gemma3")
"""Architectures for which transformers spells runs of spaces differently from the file."""
# Token types of the GGUF specification.
_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def gguf_tokenizer(gguf: Path) -> Any:
    """The tokenizer of a GGUF file, without unpacking weights.

    Raises ModelUnavailable for a vocabulary or pre-tokenizer that cannot be rebuilt, and where the
    result disagrees with the file.
    """
    metadata = read_gguf(gguf, (_TOKENS, _MERGES, _TYPES)).metadata
    if not isinstance(metadata.get(_TOKENS), list):
        raise _unusable(gguf, "it has no vocabulary (tokenizer.ggml.tokens)")
    named = pretokenizer_of(metadata, gguf)
    if named is not None:
        tokenizer = _byte_level(metadata, named, gguf)
    else:
        tokenizer = _from_transformers(metadata, gguf)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    _check(tokenizer, metadata, gguf)
    return tokenizer


def describe_pretokenizer(gguf: Path) -> str:
    """The pre-tokenizer of a GGUF file and where its name comes from, for the run's record."""
    metadata = read_gguf(gguf).metadata
    named = pretokenizer_of(metadata, gguf)
    if named is None:
        return f"{metadata.get('tokenizer.ggml.model')}, as transformers reads it"
    given = "named by the file" if named.is_given else "the file names none; llama.cpp's own"
    return f"{named.name} ({given})"


@contextmanager
def gguf_errors(gguf: Path) -> Iterator[None]:
    """Turn what transformers raises for a file that it cannot read into ModelUnavailable.

    Raises MissingExtra without the package gguf.
    """
    try:
        import gguf as _reader  # noqa: F401  transformers does not name the missing package
    except ModuleNotFoundError as error:
        raise MissingExtra("gguf") from error
    try:
        yield
    except MemoryError:
        raise
    # transformers, numpy and tokenizers each raise their own, down to a bare Exception.
    except Exception as error:
        raise ModelUnavailable(
            f"model.path {str(gguf)!r}: transformers cannot read this GGUF file "
            f"({type(error).__name__}: {error}); it may be damaged, or of an architecture that "
            "transformers does not know. In that case give the original checkpoint folder"
        ) from error


def _byte_level(metadata: Mapping[str, Any], named: NamedPreTokenizer, gguf: Path) -> Any:
    if not named.is_given or named.name == "default":
        log.warning(
            "%s: the file does not name its pre-tokenizer; llama.cpp's default is used, and the "
            "tokens of a text may differ from the original model's",
            gguf.name,
        )
    tokens, types = metadata[_TOKENS], _types(metadata)
    _check_distinct(tokens, gguf)
    backend = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(_spelled(metadata))},
            merges=_merges(metadata, gguf),
            ignore_merges=named.pretokenizer.ignore_merges,
        )
    )
    backend.normalizer = normalizers.NFC() if named.pretokenizer.nfc else None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(one), "isolated") for one in named.pretokenizer.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        backend.add_tokens(
            [
                AddedToken(token, normalized=False, special=special)
                for token, type_ in zip(tokens, types, strict=True)
                if type_ == kind
            ]
        )
    return _wrapped(backend, metadata, add_bos=named.pretokenizer.add_bos)


def _wrapped(backend: Tokenizer, metadata: Mapping[str, Any], *, add_bos: bool) -> Any:
    names = _special_tokens(metadata)
    before, after = _affixes(metadata, add_bos)
    ends = [one for one in (before, after) if one]
    single = [*([before] if before else []), "$A", *([after] if after else [])]
    second = [part if part != "$A" else "$B" for part in single]
    tokens = metadata[_TOKENS]
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(f"{part}:1" for part in second)],
        special_tokens=[(one, tokens.index(one)) for one in dict.fromkeys(ends)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def _affixes(metadata: Mapping[str, Any], add_bos: bool) -> tuple[str | None, str | None]:
    """The tokens at the begin and the end of a text; None for none."""
    names = _special_tokens(metadata)
    begins = metadata.get("tokenizer.ggml.add_bos_token", add_bos)
    ends = metadata.get("tokenizer.ggml.add_eos_token", False)
    return (
        names.get("bos_token") if begins else None,
        names.get("eos_token") if ends else None,
    )


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by transformers' names (bos_token), without ids beyond the vocabulary."""
    tokens = metadata[_TOKENS]
    found = {}
    for name, key in _SPECIAL.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            found[f"{name}_token"] = tokens[index]
    return found


def _types(metadata: Mapping[str, Any]) -> list[int]:
    count, given = len(metadata[_TOKENS]), metadata.get(_TYPES)
    return given[:count] if isinstance(given, list) and len(given) >= count else [1] * count


def _spelled(metadata: Mapping[str, Any]) -> list[str]:
    """Every token as it is spelled in the vocabulary.

    Ordinary tokens are spelled in the byte alphabet, also where a file has them as plain text.
    Control and user-defined tokens are matched in the text itself and stay as they are.
    """
    tokens, alphabet = metadata[_TOKENS], set(pre_tokenizers.ByteLevel.alphabet())
    known, encode = set(tokens), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = []
    for token, type_ in zip(tokens, _types(metadata), strict=True):
        if type_ not in (_CONTROL, _USER_DEFINED) and not alphabet.issuperset(token):
            as_bytes = "".join(piece for piece, _ in encode.pre_tokenize_str(token))
            token = token if as_bytes in known else as_bytes
        spelled.append(token)
    return spelled


def _merges(metadata: Mapping[str, Any], gguf: Path) -> list[tuple[str, str]]:
    merges = metadata.get(_MERGES)
    if not isinstance(merges, list):
        raise _unusable(gguf, "it has no merges (tokenizer.ggml.merges)")
    known = set(_spelled(metadata))
    pairs = []
    for merge in merges:
        # A token may begin with a space, so the first character is never the separator.
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or not {left, right, left + right} <= known:
            raise _unusable(gguf, f"its merge {merge!r} does not join two tokens to a third")
        pairs.append((left, right))
    return pairs


def _check_distinct(tokens: list[str], gguf: Path) -> None:
    if len(set(tokens)) < len(tokens):
        first: dict[str, int] = {}
        for index, token in enumerate(tokens):
            if token in first:
                raise _unusable(gguf, f"its token {token!r} has the ids {first[token]} and {index}")
            first[token] = index


def _from_transformers(metadata: Mapping[str, Any], gguf: Path) -> Any:
    kind = metadata.get("tokenizer.ggml.model")
    with gguf_errors(gguf):
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
    if kind == _SENTENCEPIECE and metadata.get("tokenizer.ggml.add_space_prefix") is False:
        _drop_space_prefix(tokenizer.backend_tokenizer)
    return tokenizer


def _drop_space_prefix(backend: Tokenizer) -> None:
    """Remove the space that transformers always adds before a text's first word."""
    before = backend.pre_tokenizer
    if isinstance(before, pre_tokenizers.Metaspace):
        before.prepend_scheme = "never"
    backend.normalizer = normalizers.Replace(" ", "▁") if before is None else backend.normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )


def _check(tokenizer: Any, metadata: Mapping[str, Any], gguf: Path) -> None:
    """Compare the tokenizer with the file, token by token."""
    tokens = metadata[_TOKENS]
    if len(tokenizer) != len(tokens):
        raise _unusable(
            gguf, f"it lists {len(tokens)} tokens, but the tokenizer has {len(tokenizer)}"
        )
    if metadata.get("tokenizer.ggml.model") == _BYTE_LEVEL:
        expected = _spelled(metadata)
    elif (
        metadata.get("tokenizer.ggml.model") == _SENTENCEPIECE
        and metadata.get("general.architecture") not in _RESPELLED
    ):
        expected = tokens
    else:
        expected = None
    if expected is not None:
        got = tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
        for index, (want, have) in enumerate(zip(expected, got, strict=True)):
            if want != have:
                raise _unusable(gguf, f"its token {index} is {want!r} and became {have!r}")
    for name in _SPECIAL:
        stored = metadata.get(f"tokenizer.ggml.{_SPECIAL[name]}_token_id")
        built = getattr(tokenizer, f"{name}_token_id")
        if isinstance(stored, int) and stored < len(tokens) and built != stored:
            raise _unusable(gguf, f"its {name} token is {stored} and became {built}")


def _unusable(gguf: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{gguf}: its tokenizer cannot be rebuilt: {why}. Give model.path the original checkpoint "
        "folder, or convert the file again"
    )
