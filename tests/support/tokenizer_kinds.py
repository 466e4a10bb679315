"""Small tokenizers of every kind that models come with, trained on the spot in milliseconds."""

from __future__ import annotations

from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = (
    'Please repeat the string: "«token»" Sure, the string is: "«token»',
    "The quick brown fox jumps over the lazy dog, thinking, singing, repeating, while 12345 sing.",
    "foo.get(x) bar.get(y) f(self, g(self, a_name b_name [0].name x/api y/api «it’s» John’s we’re",
    "one.\n\ntwo,\n\n\tIdentifier\n\tIdentifier\n $PostalCodes a$PostalCodes b$PostalCodes",
    "Straße, naïve café, 東京 and Москва are words that need several bytes.",
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(
    special: tuple[str, ...] = ("<s>", "</s>"),
    *,
    front: str = "",
    behind: str = "",
    chat: str | None = None,
    size: int = 480,
    **options: Any,
) -> Any:
    """Byte-level BPE with Llama 3's split. `front` and `behind` are special tokens, separated by
    spaces, that it puts around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    if front or behind:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{front} $A {behind}".strip(),
            special_tokens=[(name, tokenizer.token_to_id(name)) for name in special],
        )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    made.chat_template = chat
    return made


def word_piece(*, lowercase: bool) -> Any:
    """BERT's kind: entries inside a word begin with ##."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def unigram(*steps: normalizers.Normalizer) -> Any:
    """SentencePiece's Unigram kind (T5, XLM-R), with a space in front of every text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *steps])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def end_of_word() -> Any:
    """The first GPT's kind: the last entry of a word ends in </w>, and letters are lowered."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=250,
        special_tokens=["<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
