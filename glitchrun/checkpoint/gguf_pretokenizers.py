"""The pre-tokenizers of byte-level vocabularies, by the name in a GGUF file.

A pre-tokenizer splits a text into pieces before the merges are applied. A GGUF file has the
vocabulary and its merges, but of the pre-tokenizer only a name, `tokenizer.ggml.pre`. A wrong one
encodes the same text with other tokens and raises no error, so unknown names are refused. llama.cpp
documents the names, their patterns and their options:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
Where llama.cpp simplifies a pattern, this table has the pattern of the model's own tokenizer.json.
It also has the normalizers of the families, which llama.cpp omits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glitchrun.errors import ModelUnavailable

DEFAULT = "default"
"""The name that llama.cpp assumes for a file without one."""


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How a text is split before the merges, and the related options of a vocabulary."""

    patterns: tuple[str, ...]
    """Regular expressions, each applied to the pieces that the previous one leaves. Every match and
    the text between two matches become pieces."""
    ignore_merges: bool = False
    """Whether a piece that equals a vocabulary entry is that token, regardless of the merges."""
    add_bos: bool = False
    """Whether a text begins with the BOS token where the file does not specify it."""
    nfc: bool = False
    """Whether text is first normalized to Unicode's composed form (NFC)."""


@dataclass(frozen=True, slots=True)
class NamedPreTokenizer:
    """A GGUF file's pre-tokenizer."""

    name: str
    """As in the file; `default` where the file names none."""
    is_given: bool
    """Whether the file names it."""
    pretokenizer: PreTokenizer


def pretokenizer_of(metadata: Mapping[str, Any], path: Path) -> NamedPreTokenizer | None:
    """The pre-tokenizer that a GGUF file's metadata name; None for a vocabulary without one.

    Raises ModelUnavailable for an unknown name, and for one whose vocabulary is not byte-level.
    """
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return None
    given = metadata.get("tokenizer.ggml.pre")
    name = str(given or DEFAULT)
    if name in PRE_TOKENIZERS:
        return NamedPreTokenizer(name, bool(given), PRE_TOKENIZERS[name])
    if name in _NOT_BYTE_LEVEL:
        raise _refused(path, name, "its vocabulary is not byte-level, which cannot be converted")
    raise _refused(
        path,
        name,
        "glitchrun does not know this pre-tokenizer. Another one would encode the same text "
        "differently, and no result would apply to the real model",
    )


def _refused(path: Path, name: str, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{path}: tokenizer.ggml.pre is {name!r}: {why}. Give model.path the original checkpoint "
        "folder, whose tokenizer.json defines the pre-tokenizer"
    )


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str) -> str:
    """The pattern of GPT-4 and most later models, which differ in how they group digits."""
    return rf"{_ENDINGS}|{_WORD}|{digits}|{_SYMBOLS}|{_SPACE}"


def _cased(digits: str, endings: str = f"{_ENDINGS}?") -> str:
    """The pattern of GPT-4o: it splits a word before a capital that follows a lower-case letter."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    front = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{front}{upper}*{lower}+{endings}|{front}{upper}+{lower}*{endings}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"
    )


_ONE, _THREE = r"\p{N}", r"\p{N}{1,3}"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACE}"
)
_DEEPSEEK_LETTERS = (
    # Letters with a case, as of some version of Unicode. Escaped, because an editor that normalizes
    # text would change some.
    r"\s?["
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
    "]+"
)
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
_NOT_HAN = r"&&[^\p{Han}]"
_KIMI_UPPER = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NOT_HAN}]"
_KIMI_LOWER = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{_NOT_HAN}]"
_KIMI = (
    r"[\p{Han}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_ENDINGS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACE}"
)

_LLAMA3 = PreTokenizer((_words(_THREE),), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer((_words(_ONE),), nfc=True)
_SINGLE_DIGITS = PreTokenizer((_ONE, _GPT2))
_PLAIN = PreTokenizer((_GPT2,))
_GPT4O = PreTokenizer((_cased(_THREE),))
_GLM4 = PreTokenizer((_words(_THREE),))
_DEEPSEEK_V3 = PreTokenizer((_THREE, _CJK, _DEEPSEEK))
_BAILING = PreTokenizer(
    (
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
    )
)
_AYA = PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _cased(_THREE)))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    DEFAULT: PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        _LLAMA3,
    ),
    "jina-v5-nano": _LLAMA3,
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer((_words(_THREE),))),
    **dict.fromkeys(("chatglm-bpe", "glm4", "glm5"), _GLM4),
    "tekken": PreTokenizer((_cased(_ONE, ""),), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    "granite-embed-multi-97m": PreTokenizer((_cased(_THREE),), ignore_merges=True),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _AYA),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN2),
    "qwen35": PreTokenizer(
        (
            (
                rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}"
            ),
        ),
        nfc=True,
    ),
    "stablelm2": PreTokenizer((_words(_ONE),), nfc=True),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), PreTokenizer((_words(_ONE),))),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACE}",)),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _words(_ONE))),
    "seed-coder": PreTokenizer(
        (rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}",)
    ),
    "minicpm5": PreTokenizer((_THREE, _words(r"\p{N}+")), ignore_merges=True),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    "exaone-moe": PreTokenizer(
        (
            (
                rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"
                r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
            ),
        )
    ),
    "k2-horizon": PreTokenizer(
        (
            (
                rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}|\p{{M}}|\u200C|\u200D)+|\p{{N}}{{1,3}}"
                rf"|{_SYMBOLS}|{_SPACE}"
            ),
        )
    ),
    "jais-2": PreTokenizer(
        (
            rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|\s*[\r\n]+|"
            + "|".join(rf"\s{{{run}}}(?!\S)" for run in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
        _SINGLE_DIGITS,
    ),
    "command-r": PreTokenizer((_ONE, _GPT2), nfc=True),
    **dict.fromkeys(
        (
            *("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de"),
            *("a.x-4.0", "mellum", "jais", "trillion", "granite-docling", "exaone4"),
            *("jina-v1-en", "jina-v2-code", "roberta-bpe"),
        ),
        _PLAIN,
    ),
    **dict.fromkeys(("mpt", "olmo", "modern-bert"), PreTokenizer((_GPT2,), nfc=True)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            _DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _ONE)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK_V3),
    "spark2_5": PreTokenizer(
        (
            _THREE,
            _CJK,
            (
                r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
                r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
            ),
            _ONE,
        )
    ),
    "youtu": PreTokenizer(
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            _cased(_ONE),
        ),
        ignore_merges=True,
    ),
    "afmoe": PreTokenizer(
        (
            # From the right in threes: the first piece takes what is left over.
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
            "[一-鿿㐀-䶿\uf900-\ufaff぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
            _DEEPSEEK,
        )
    ),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer((_BLOOM,))),
    "viking": PreTokenizer((_BLOOM, _ONE)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "kimi-k2": PreTokenizer((_KIMI,)),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            _ONE,
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
}
_NOT_BYTE_LEVEL = ("gemma4", "granite-embed-multi-311m", "mmbert", "sarvam-moe", "whitespace")
