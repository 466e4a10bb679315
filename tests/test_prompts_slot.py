"""A place for sequences in a prompt: by id, on the ids that the whole text has."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from glitchrun.errors import PreflightError
from glitchrun.prompts.detect import detect
from glitchrun.prompts.render import Slot, intact_sequences, render_slot
from tests.support.tiny_models import CHATML, bpe_tokenizer, mistral_tokenizer


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> AutoTokenizer:
    folder = bpe_tokenizer(tmp_path_factory.mktemp("bpe"), chat_template=CHATML)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(mistral_tokenizer(tmp_path_factory.mktemp("mistral")))


def place(tokenizer: AutoTokenizer, template: str, text: str, **options: str) -> Slot:
    return render_slot(detect(template, tokenizer, {}, "org/model"), text, tokenizer, **options)


@pytest.mark.parametrize("text", ["The quick brown", " fox", "2+2=", "x"])
@pytest.mark.parametrize("template", ["raw", "nowllm", "mistral", "llama2"])
def test_without_a_sequence_the_ids_are_those_of_the_text(
    template: str, text: str, mistral: AutoTokenizer
) -> None:
    written = {
        "raw": text,
        "nowllm": f"[INST]{text}[/INST]",
        "mistral": f"[INST] {text} [/INST]",
        "llama2": f"[INST] {text} [/INST]",
    }[template]
    found = place(mistral, template, text)
    assert list(found.ids(())) == mistral.encode(written)  # with the one BOS that belongs there
    assert found.ids(()).count(mistral.bos_token_id) == 1
    assert intact_sequences(found, [()], mistral) == [True]


@pytest.mark.parametrize("template", ["raw", "tokenizer"])
def test_a_tokenizer_without_bos(template: str, bpe: AutoTokenizer) -> None:
    found = place(bpe, template, "The quick brown", prefill=" fox")
    text = "The quick brown fox"
    if template == "tokenizer":
        text = "<|im_start|>user\nThe quick brown<|im_end|>\n<|im_start|>assistant\n fox"
    assert list(found.ids(())) == bpe.encode(text, add_special_tokens=False)
    assert found.added_ids == ()
    assert bool(found.prefix_ids) == (template == "tokenizer")


def test_a_sequence_is_inserted_directly_before_the_text(mistral: AutoTokenizer) -> None:
    found = place(mistral, "nowllm", "The quick brown")
    ids = found.ids((7, 8))
    before = mistral.encode("[INST]")
    assert list(ids[: len(before) + 2]) == [*before, 7, 8]
    assert list(ids[len(before) + 2 :]) == list(found.suffix_ids)


@pytest.mark.parametrize("template", ["raw", "nowllm"])
def test_intact_sequences_equal_the_encoded_text(template: str, mistral: AutoTokenizer) -> None:
    found = place(mistral, template, " quick brown")
    word = mistral.encode("hello world", add_special_tokens=False)
    apart = [mistral.convert_tokens_to_ids(piece) for piece in ("▁wor", "ld")]
    byte = mistral.convert_tokens_to_ids("<0x41>")
    assert mistral.encode("wor ld", add_special_tokens=False) != apart
    if template == "raw":
        assert intact_sequences(found, [word, apart, (byte,)], mistral) == [True, False, False]
    else:
        assert intact_sequences(found, [apart, (byte,)], mistral) == [False, False]


def test_bytes_that_form_a_character_together_are_intact(bpe: AutoTokenizer) -> None:
    found = place(bpe, "tokenizer", " x")
    euro = tuple(bpe.encode("€", add_special_tokens=False))
    assert len(euro) == 3
    assert intact_sequences(found, [euro, euro[:1]], bpe) == [True, False]


def test_an_unsupported_system_text_is_refused(mistral: AutoTokenizer) -> None:
    with pytest.raises(PreflightError, match="system"):
        place(mistral, "nowllm", "x", system="Be brief.")
