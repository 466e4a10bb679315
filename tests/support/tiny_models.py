"""Tiny but real checkpoints: a few seconds to build, loadable by anything that reads Hugging Face.

Weights are random from a seed, tokenizers are real (trained on the spot, or the 32,000-token one of
Mistral). Every builder writes a folder and returns its path.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = (
    'Please repeat the string: "«token»" Sure, the string is: "«token»',
    "The quick brown fox jumps over the lazy dog, again and again, while 12345 birds sing.",
    "def repeat(token): return token + token  # says the same word twice",
    "Straße, naïve café, 東京 and Москва are words that need several bytes.",
    "user assistant system question answer explain repeat the word exactly as it is written",
)


def bpe_tokenizer(folder: Path, *, size: int = 400, chat_template: str | None = None) -> Path:
    """Train a byte-level BPE of about `size` entries (256 bytes, 4 specials, merges)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return folder


def mistral_tokenizer(folder: Path) -> Path:
    """The real 32,000-token tokenizer of Mistral and Mixtral, from the package mistral-common."""
    spec = find_spec("mistral_common")
    assert spec is not None, "the tests need the package mistral-common"
    assert spec.submodule_search_locations
    source = Path(next(iter(spec.submodule_search_locations))) / "data" / "tokenizer.model.v1"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / "tokenizer.model")
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _vocabulary_size(folder: Path) -> int:
    return len(transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _write(
    folder: Path,
    kind: str,
    settings: dict[str, Any],
    *,
    vocab: int | None,
    seed: int,
    dtype: torch.dtype,
    shard_size: str,
    real_tokenizer: bool = False,
) -> Path:
    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer_config.json").exists():
        mistral_tokenizer(folder) if real_tokenizer else bpe_tokenizer(folder)
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(
        vocab_size=vocab or _vocabulary_size(folder),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **settings,
    )
    model_class = getattr(transformers, f"{kind}LMHeadModel", None)
    causal = f"{kind.removesuffix('Text')}ForCausalLM"
    model_class = model_class or getattr(transformers, causal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config).to(dtype)
    # The default initialization (0.02) leaves a tiny model's logits flat; spread them out.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def _llama_shape(hidden: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
    }


def tiny_llama(
    folder: Path,
    vocab: int | None = None,
    seed: int = 0,
    *,
    hidden: int = 64,
    layers: int = 2,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    real_tokenizer: bool = False,
) -> Path:
    """A LlamaForCausalLM. `vocab=None` takes the tokenizer's size; a larger one adds unused rows.

    `real_tokenizer` takes Mistral's 32,000 entries instead of the trained ~400; a tokenizer that is
    already in the folder is kept.
    """
    shape = _llama_shape(hidden, layers, 4, 2)
    settings = {**shape, "intermediate_size": 2 * hidden, "tie_word_embeddings": tied}
    return _write(
        folder,
        "Llama",
        settings,
        vocab=vocab,
        seed=seed,
        dtype=dtype,
        shard_size=shard_size,
        real_tokenizer=real_tokenizer,
    )


def tiny_mixtral(
    folder: Path,
    vocab: int | None = None,
    seed: int = 0,
    *,
    hidden: int = 64,
    intermediate: int = 128,
    layers: int = 2,
    experts: int = 4,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    real_tokenizer: bool = False,
) -> Path:
    """A MixtralForCausalLM, stored as `save_pretrained` does: one matrix per expert.

    A small `shard_size` ("2MB") splits it over several files with an index.
    """
    settings = {
        **_llama_shape(hidden, layers, 4, 2),
        "intermediate_size": intermediate,
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": tied,
    }
    return _write(
        folder,
        "Mixtral",
        settings,
        vocab=vocab,
        seed=seed,
        dtype=dtype,
        shard_size=shard_size,
        real_tokenizer=real_tokenizer,
    )


def tiny_qwen_moe(folder: Path, vocab: int | None = None, seed: int = 0) -> Path:
    """A Qwen3MoeForCausalLM: another architecture with fused experts."""
    settings = {
        **_llama_shape(64, 2, 4, 2),
        "head_dim": 16,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    return _write(
        folder, "Qwen3Moe", settings, vocab=vocab, seed=seed, dtype=torch.float32, shard_size="5GB"
    )


def tiny_gpt2(
    folder: Path, vocab: int | None = None, seed: int = 0, *, positions: int = 256
) -> Path:
    """A GPT2LMHeadModel: learned positions, Conv1D instead of Linear, tied embeddings."""
    settings = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": positions}
    return _write(
        folder, "GPT2", settings, vocab=vocab, seed=seed, dtype=torch.float32, shard_size="5GB"
    )


def tiny_gemma(folder: Path, vocab: int | None = None, seed: int = 0) -> Path:
    """A GemmaForCausalLM: embeddings scaled inside the model, tied head."""
    settings = {**_llama_shape(64, 2, 4, 1), "head_dim": 16, "intermediate_size": 128}
    return _write(
        folder, "Gemma", settings, vocab=vocab, seed=seed, dtype=torch.float32, shard_size="5GB"
    )


def tiny_qwen(folder: Path, vocab: int | None = 408, seed: int = 0) -> Path:
    """A Qwen2ForCausalLM: biases in attention, no BOS by convention, more rows than tokens."""
    settings = {**_llama_shape(64, 2, 4, 2), "intermediate_size": 128, "tie_word_embeddings": True}
    return _write(
        folder, "Qwen2", settings, vocab=vocab, seed=seed, dtype=torch.float32, shard_size="5GB"
    )


def prequantized(source: Path, folder: Path, scheme: str, storage: str = "uint8") -> Path:
    """A checkpoint whose matrices bitsandbytes has quantized, to int8 or to nf4 with double
    quantization (int4), whose codes are stored as elements of the dtype `storage`."""
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    nf4["bnb_4bit_quant_storage"] = storage
    config = (
        transformers.BitsAndBytesConfig(load_in_4bit=True, **nf4)
        if scheme == "int4"
        else transformers.BitsAndBytesConfig(load_in_8bit=True)
    )
    stored = transformers.AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    bpe_tokenizer(folder)
    stored.save_pretrained(folder)
    return folder
