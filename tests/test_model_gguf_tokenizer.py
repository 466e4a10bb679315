"""The tokenizer of a GGUF file: the pre-tokenizer that it names, or an error."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

from glitchrun.checkpoint.gguf_pretokenizers import PRE_TOKENIZERS
from glitchrun.checkpoint.headers import read_header
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.errors import ModelUnavailable
from glitchrun.model.gguf_tokenizer import gguf_tokenizer
from tests.support.tiny_gguf import tiny_gguf
from tests.support.tiny_models import SPECIAL

SAMPLE = (
    "Hello  world's DON'T 1234567 FooBar self.get(x)(self, $Name x²½ naïve 東京に行く 가나다\n\n"
    "  \r\n\t return 'x' !!\n 12  345 a.b.c  \n<|im_start|>user"
)
# The splits as the models' own tokenizer.json gives them, by the name in a GGUF file.
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _tekken() -> str:
    """Mistral's own pattern, from the tokenizer in the package mistral-common."""
    spec = find_spec("mistral_common")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "tekken_240911.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["config"]["pattern"])


def _split(*patterns: str) -> list[dict[str, object]]:
    return [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in patterns
    ]


FOLDERS = {
    "gpt-2": [GPT2],
    "smollm": [DIGITS, GPT2],
    "starcoder": [DIGITS, GPT2],
    "llama-bpe": [*_split(LLAMA3), BYTES],
    "qwen2": [*_split(QWEN2), BYTES],
    "deepseek-v3": [*_split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK), BYTES],
    "superbpe": [*_split(r"\p{N}+", r"(?=(\d{3})+(?!\d))"), BYTES],
    "tekken": [*_split(_tekken()), BYTES],
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        GPT2,
        {"type": "Digits", "individual_digits": False},
        *_split("[0-9][0-9][0-9]"),
    ],
}


def _folder(folder: Path, steps: list[dict[str, object]]) -> Path:
    """A tokenizer whose merges were learned after pre-tokenization, as in real models."""
    frame = json.loads(Tokenizer(models.BPE()).to_str())
    frame["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    tokenizer = Tokenizer.from_str(json.dumps(frame))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=460,
        special_tokens=[AddedToken(one, special=True, normalized=False) for one in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator([SAMPLE] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_tokenizes_like_its_source_folder(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "folder", FOLDERS[name])
    own = PreTrainedTokenizerFast.from_pretrained(folder)
    rebuilt = gguf_tokenizer(tiny_gguf(tmp_path / "x.gguf", folder=folder, pre=name))
    for at in range(len(SAMPLE)):  # every end of it: what follows decides a split, too
        for text in (SAMPLE[:at], SAMPLE[at:]):
            ids = rebuilt.encode(text, add_special_tokens=False)
            assert ids == own.encode(text, add_special_tokens=False), text
            assert rebuilt.decode(ids) == own.decode(ids)
    assert rebuilt.get_vocab() == own.get_vocab()


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pretokenizer_splits_the_text_and_keeps_all_of_it(name: str) -> None:
    steps = [pre_tokenizers.Split(Regex(one), "isolated") for one in PRE_TOKENIZERS[name].patterns]
    pieces = [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(SAMPLE)]
    assert "".join(pieces) == SAMPLE
    assert len(pieces) > 10


@pytest.mark.parametrize("name", ["brand-new", "gemma4"])
def test_an_unknown_pretokenizer_is_rejected_before_the_conversion(
    name: str, tmp_path: Path
) -> None:
    path = tiny_gguf(tmp_path / "x.gguf", pre=name)
    with pytest.raises(ModelUnavailable, match=rf"(?s){name}.*original checkpoint folder"):
        read_header(Checkpoint("gguf", path, str(path)))
    with pytest.raises(ModelUnavailable, match=name):
        gguf_tokenizer(path)


def test_a_file_without_a_name_uses_the_default_of_llama_cpp_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _folder(tmp_path / "folder", FOLDERS["gpt-2"])
    nameless = gguf_tokenizer(tiny_gguf(tmp_path / "x.gguf", folder=folder, pre=None))
    assert "does not name its pre-tokenizer" in caplog.text
    named = gguf_tokenizer(tiny_gguf(tmp_path / "y.gguf", folder=folder, pre="default"))
    assert nameless.tokenize(SAMPLE) == named.tokenize(SAMPLE)
    assert "(" in nameless.tokenize(" (self")  # punctuation stands alone, without its space


@pytest.mark.parametrize(
    ("said", "name", "expected"),
    [
        (True, "gpt-2", True),
        (False, "gpt-2", False),
        (None, "gpt-2", False),
        (None, "llama-bpe", True),
        (False, "llama-bpe", False),
    ],
)
def test_a_text_begins_with_bos_where_the_file_or_its_family_sets_it(
    said: bool | None, name: str, expected: bool, tmp_path: Path
) -> None:
    tokenizer = gguf_tokenizer(tiny_gguf(tmp_path / "x.gguf", pre=name, add_bos=said))
    assert (tokenizer("a").input_ids[0] == tokenizer.bos_token_id) is expected
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    assert saved("a").input_ids == tokenizer("a").input_ids


def test_a_piece_that_is_an_entry_is_one_token_with_ignore_merges(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "folder", FOLDERS["llama-bpe"])
    # One token that no merge leads to.
    spelled = "".join(
        piece for piece, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str("ж")
    )
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"][spelled] = len(content["model"]["vocab"])
    file.write_text(json.dumps(content), encoding="utf-8")
    whole = gguf_tokenizer(tiny_gguf(tmp_path / "x.gguf", folder=folder, pre="llama-bpe"))
    merged = gguf_tokenizer(tiny_gguf(tmp_path / "y.gguf", folder=folder, pre="dbrx"))
    assert len(whole.encode("ж", add_special_tokens=False)) == 1
    assert len(merged.encode("ж", add_special_tokens=False)) == 2


def test_tokens_outside_the_byte_alphabet_stay_whole(tmp_path: Path) -> None:
    """DeepSeek's control tokens, and runs of spaces that files store as plain text."""
    renamed = {
        "<|im_start|>": ("<｜User｜>", TokenType.CONTROL),
        "<|im_end|>": ("   ", TokenType.USER_DEFINED),
    }
    tokenizer = gguf_tokenizer(tiny_gguf(tmp_path / "x.gguf", pre="deepseek-v3", renamed=renamed))
    ids = tokenizer.encode("a<｜User｜>b   c", add_special_tokens=False)
    assert ids[1] == 2
    assert ids[3] == 3
    assert len(ids) == 5
    assert tokenizer.decode(ids) == "a<｜User｜>b   c"
    assert tokenizer.added_tokens_decoder[2].special
    assert not tokenizer.added_tokens_decoder[3].special
    assert len(tokenizer) == len(gguf_tokenizer(tiny_gguf(tmp_path / "y.gguf")))


def test_two_ids_for_one_token_are_rejected(tmp_path: Path) -> None:
    renamed = {"<|im_end|>": ("<|im_start|>", TokenType.CONTROL)}
    path = tiny_gguf(tmp_path / "x.gguf", renamed=renamed)
    with pytest.raises(ModelUnavailable, match=r"'<\|im_start\|>' has the ids 2 and 3"):
        gguf_tokenizer(path)
