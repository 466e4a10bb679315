"""The tokenizer of a GGUF file, built from its metadata.

transformers builds one too, but takes a split whose name it does not know for GPT-2's without a
word, cuts control and user-defined tokens into pieces that are not spelled in the byte alphabet
(such as DeepSeek's), and reads neither `ignore_merges` nor `add_space_prefix`. So a byte-level
vocabulary (`gpt2`) is built here; SentencePiece's (`llama`, `t5`, `gemma4`) comes from
transformers. Both are compared with the file before they are used.
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
"""Architectures whose runs of spaces transformers spells in its own way."""
# Token types, of the specification of GGUF.
_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def gguf_tokenizer(gguf: Path) -> Any:
    """The tokenizer of a GGUF file; none of the weights is unpacked.

    Raises ModelUnavailable where the vocabulary is of a kind, or its split of a name, that cannot
    be rebuilt, and where what was built is not what the file says.
    """
    metadata = read_gguf(gguf, (_TOKENS, _MERGES, _TYPES)).metadata
    if not isinstance(metadata.get(_TOKENS), list):
        raise _unusable(gguf, "it holds no vocabulary (tokenizer.ggml.tokens)")
    named = pretokenizer_of(metadata, gguf)
    if named is not None:
        tokenizer = _byte_level(metadata, named, gguf)
    else:
        tokenizer = _from_transformers(metadata, gguf)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    _check(tokenizer, metadata, gguf)
    return tokenizer


def describe_split(gguf: Path) -> str:
    """How the text of a GGUF model is split, and which source named the split, for the record."""
    metadata = read_gguf(gguf).metadata
    named = pretokenizer_of(metadata, gguf)
    if named is None:
        return f"{metadata.get('tokenizer.ggml.model')}, as transformers reads it"
    given = "named by the file" if named.is_given else "the file names none; llama.cpp's own"
    return f"{named.name} ({given})"


@contextmanager
def reading(gguf: Path) -> Iterator[None]:
    """What transformers raises for a file that it cannot read becomes a ModelUnavailable."""
    try:
        import gguf as _reader  # noqa: F401  transformers only says that "something" is missing
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
            f"({type(error).__name__}: {error}); it may be damaged, or of an architecture it does "
            "not know, in which case the original checkpoint folder is the way"
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
    before, after = _added(metadata, add_bos)
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


def _added(metadata: Mapping[str, Any], add_bos: bool) -> tuple[str | None, str | None]:
    """The tokens that a text begins and ends with; None for none."""
    names = _special_tokens(metadata)
    begins = metadata.get("tokenizer.ggml.add_bos_token", add_bos)
    ends = metadata.get("tokenizer.ggml.add_eos_token", False)
    return (
        names.get("bos_token") if begins else None,
        names.get("eos_token") if ends else None,
    )


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """By transformers' names, such as bos_token; ids beyond the vocabulary mean none."""
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
    """Every token as it stands in the vocabulary.

    Ordinary ones are spelled in the byte alphabet; where a file has one as plain text, it is
    spelled so here. Control and user-defined tokens are found in the text itself.
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
        raise _unusable(gguf, "it holds no merges (tokenizer.ggml.merges)")
    known = set(_spelled(metadata))
    pairs = []
    for merge in merges:
        # A token may begin with a space itself, so the first character is never the divider.
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or not {left, right, left + right} <= known:
            raise _unusable(gguf, f"its merge {merge!r} is not of two tokens that make a third")
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
    with reading(gguf):
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
    if kind == _SENTENCEPIECE and metadata.get("tokenizer.ggml.add_space_prefix") is False:
        _drop_space_prefix(tokenizer.backend_tokenizer)
    return tokenizer


def _drop_space_prefix(backend: Tokenizer) -> None:
    """Leave a text's first word without a space in front, which transformers always adds."""
    before = backend.pre_tokenizer
    if isinstance(before, pre_tokenizers.Metaspace):
        before.prepend_scheme = "never"
    backend.normalizer = normalizers.Replace(" ", "▁") if before is None else backend.normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )


def _check(tokenizer: Any, metadata: Mapping[str, Any], gguf: Path) -> None:
    """Compare the tokenizer with the file, token by token. Raises ModelUnavailable."""
    tokens = metadata[_TOKENS]
    if len(tokenizer) != len(tokens):
        raise _unusable(gguf, f"it lists {len(tokens)} tokens, which made {len(tokenizer)}")
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
        said = metadata.get(f"tokenizer.ggml.{_SPECIAL[name]}_token_id")
        have = getattr(tokenizer, f"{name}_token_id")
        if isinstance(said, int) and said < len(tokens) and have != said:
            raise _unusable(gguf, f"its {name} token is {said} and became {have}")


def _unusable(gguf: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{gguf}: its tokenizer cannot be rebuilt: {why}. Give model.path the original checkpoint "
        "folder, or convert the file again"
    )
