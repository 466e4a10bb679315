"""Categories of two real vocabularies and of synthetic entries."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from glitchrun.model import load_tokenizer
from glitchrun.vocabulary import CATEGORIES, Vocabulary
from glitchrun.vocabulary.indicators import row_norms
from glitchrun.vocabulary.text import raw_bytes
from tests.support.real_tokenizers import mistral, smollm2
from tests.support.tiny_models import bpe_tokenizer


@cache
def smollm2_vocabulary() -> Vocabulary:
    return Vocabulary(smollm2(), torch.arange(49_152 + 8).float())


@cache
def mistral_vocabulary() -> Vocabulary:
    return Vocabulary(mistral(), torch.zeros(32_000))


def counts(vocabulary: Vocabulary) -> dict[str, int]:
    return dict(Counter(vocabulary.categories))


def test_smollm2() -> None:
    """GlitchMiner counts 48,814 normal, 17 special, 1 undecodable and 320 unreachable, of which
    313 are parts of characters and 7 are written alone, but not behind «. 8 rows were added here
    that the tokenizer knows nothing of."""
    assert counts(smollm2_vocabulary()) == {
        "normal": 48_821,
        "special": 17,
        "byte": 313,
        "undecodable": 1,
        "unused": 8,
    }


def test_mistral() -> None:
    assert counts(mistral_vocabulary()) == {
        "normal": 31_743,
        "special": 3,
        "byte": 253,
        "undecodable": 1,
    }


def test_the_counts_in_the_documentation_are_correct() -> None:
    page = (Path(__file__).parents[1] / "docs" / "templates.md").read_text(encoding="utf-8")
    for category in CATEGORIES:
        ours = [counts(v).get(category, 0) for v in (smollm2_vocabulary(), mistral_vocabulary())]
        ours[0] -= 8 if category == "unused" else 0
        assert f"| `{category}` | {ours[0]:,} | {ours[1]:,} |" in page


@pytest.mark.parametrize(
    ("token_id", "text", "piece", "category", "reason"),
    [
        (1, "<|im_start|>", "<|im_start|>", "special", "added to the tokenizer"),
        (17, "!", "!", "normal", "encodes to just this token"),
        (111, "\ufffd", "¡", "byte", "raw bytes (A1)"),
        (506, "'s", "'s", "normal", "encodes to just this token alone"),
        (24_211, "\ufffd", "ï¿½", "undecodable", "U+FFFD"),
        (48_333, " \ufffd", "Ġà¨", "byte", "raw bytes (20 E0 A8)"),
        (49_150, " Mama", "ĠMama", "normal", "encodes to just this token"),
        (49_153, "", "", "unused", "no entry 49153"),
    ],
)
def test_the_facts_about_a_token(
    token_id: int, text: str, piece: str, category: str, reason: str
) -> None:
    vocabulary = smollm2_vocabulary()
    token = vocabulary.token(token_id)
    assert (token.id, token.text, token.piece) == (token_id, text, piece)
    assert (token.category, token.norm) == (category, float(token_id))
    assert reason in vocabulary.reason(token_id)


def test_every_row_of_a_real_vocabulary_has_a_category_and_a_reason() -> None:
    vocabulary = mistral_vocabulary()
    assert len(vocabulary) == len(vocabulary.categories) == 32_000
    assert set(vocabulary.categories) <= set(CATEGORIES)
    others = [i for i in range(len(vocabulary)) if vocabulary.categories[i] != "normal"]
    assert all(vocabulary.reason(i) for i in others)


def test_ids_of_categories_are_ascending() -> None:
    vocabulary = smollm2_vocabulary()
    both = vocabulary.ids(("special", "undecodable"))
    assert both == [*range(17), 24_211]
    assert vocabulary.ids([]) == []


def test_sentencepiece_pieces_keep_their_space() -> None:
    vocabulary = mistral_vocabulary()
    house = vocabulary.find(" house")
    assert house is not None
    assert (vocabulary.token(house).piece, vocabulary.text(house)) == ("▁house", " house")
    assert vocabulary.find("house") not in (None, house)


@pytest.mark.parametrize("text", ["!", " Mama", "<|im_end|>", "ĠMama", "'s"])
def test_finding_a_token_by_text_or_piece(text: str) -> None:
    vocabulary = smollm2_vocabulary()
    found = vocabulary.find(text)
    assert found is not None
    assert text in (vocabulary.token(found).text, vocabulary.token(found).piece)


def test_a_text_of_several_tokens_is_not_found() -> None:
    assert smollm2_vocabulary().find("surely not one single token") is None
    assert smollm2_vocabulary().find("") is None


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    return load_tokenizer(bpe_tokenizer(tmp_path))


def test_entries_with_reserved_names_are_unused(tiny: Any) -> None:
    tiny.add_tokens(["<|reserved_special_token_7|>", "<unused3>", "[control_8]", "<tool_call>"])
    vocabulary = Vocabulary(tiny, torch.zeros(len(tiny) + 3))
    tail = vocabulary.categories[-7:]
    assert tail == ("unused", "unused", "unused", "special", "unused", "unused", "unused")
    assert "reserved by its name" in vocabulary.reason(len(tiny) - 4)


def test_fewer_rows_than_entries(tiny: Any) -> None:
    """Entries beyond the last row of a truncated embedding are not in the vocabulary."""
    vocabulary = Vocabulary(tiny, torch.zeros(300))
    assert len(vocabulary) == len(vocabulary.categories) == 300


def test_the_vocabulary_is_read_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary(tiny, torch.zeros(len(tiny)))
    vocabulary.token(5)
    monkeypatch.setattr(type(tiny), "__call__", None)
    monkeypatch.setattr(type(tiny), "batch_decode", None)
    assert vocabulary.token(300).category == vocabulary.categories[300]


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("<0x0A>", b"\n"),
        ("<0xff>", b"\xff"),
        ("Ġà¨", b"\x20\xe0\xa8"),
        ("Ġthe", None),
        ("Ã©", None),
        ("▁the", None),
        ("", None),
    ],
)
def test_raw_bytes_of_pieces(piece: str, expected: bytes | None) -> None:
    assert raw_bytes(piece) == expected


def test_norms_equal_those_of_float32_rows() -> None:
    weight = torch.randn(1000, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    norms = row_norms(weight, chunk=64)
    assert norms.dtype == torch.float32
    assert torch.equal(norms, torch.linalg.vector_norm(weight.float(), dim=1))


def test_the_text_module_imports_no_torch() -> None:
    """The report uses it and must not import torch."""
    code = "import sys, glitchrun.vocabulary.text; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
