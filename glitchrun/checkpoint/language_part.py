"""Finds the decoder in a checkpoint: its settings, its tensors, its input embedding and its head.

A model for text and images, or text and audio, keeps the decoder's settings one level down in
config.json. The decoder's tensors have their own prefix, as do those of the other parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glitchrun.checkpoint.safetensors_files import TensorInfo
from glitchrun.errors import ModelUnavailable

_WRAPPERS = ("thinker_config",)
"""Settings that contain a whole multimodal model with a language part (Qwen's omni models)."""
_TEXT = ("text_config", "llm_config", "language_config")
_OTHER_MODALITIES = ("vision_config", "audio_config", "vq_config", "encoder_config")
_OTHER_PARTS = re.compile(
    r"visi|visual|image|vit\b|vqmodel|audio|speech|sam_|clip|talker|token2wav|projector|resampler"
    r"|connector|perceiver|protein|(^|_)mm_|vit_|qformer"
)
"""First components of tensor names, below the decoder's prefix, that belong to other parts."""
# The last components of the names of input embeddings and output heads, over all families.
_EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "token_embd.weight",
)
_RARER_EMBEDDING_NAMES = (
    "embeddings.weight",  # Mamba, RWKV, Nemotron-H
    "tokens_embed.weight",  # GPT of 2018
    "word_embedding.weight",  # XLNet
    "transformer.w.weight",  # CTRL
    "shared.weight",
)
"""Tried last, because other parts of a model have these names too."""
HEAD_NAMES = ("lm_head.weight", "embed_out.weight")


def is_composite(config: Mapping[str, Any]) -> bool:
    """Whether config.json describes a multimodal model."""
    keys = (*_WRAPPERS, *_TEXT, *_OTHER_MODALITIES)
    return any(isinstance(config.get(key), dict) for key in keys)


def text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's settings: the nested ones if there are any, else config.json itself."""
    for key in (*_WRAPPERS, *_TEXT):
        nested = config.get(key)
        if isinstance(nested, dict):
            return text_settings(nested)
    return config


def language_tensors(
    tensors: Mapping[str, TensorInfo], prefix: str, *, nested: bool
) -> dict[str, TensorInfo]:
    """The tensors of the decoder, whose names begin with `prefix`, and of the head.

    `nested` says whether config.json nests the decoder's settings. If it does not, `prefix` cannot
    tell the parts apart; all tensors but those of a part for images or audio are then returned.
    """
    return {name: info for name, info in tensors.items() if _belongs(name, prefix, nested)}


def is_other_part(path: Sequence[str]) -> bool:
    """Whether a module's path leads into a part for images or audio."""
    return any(_OTHER_PARTS.search(part) for part in path)


def _belongs(name: str, prefix: str, nested: bool) -> bool:
    path = name.split(".")
    if not nested:
        return not _OTHER_PARTS.search(path[0])
    if name.startswith(prefix):
        return not _OTHER_PARTS.search(name[len(prefix) :].split(".")[0])
    # The separate head, also a quantized one (`lm_head.qweight`), but not that of another part.
    return path[-2:-1][0:1] in (["lm_head"], ["embed_out"]) and not _OTHER_PARTS.search(path[0])


def find_embedding(
    tensors: Mapping[str, TensorInfo], source: Path, settings: Mapping[str, Any]
) -> str:
    """The name of the input embedding; among several, the one with the sizes in `settings`.

    Raises ModelUnavailable where there is none; `source` is named in the message.
    """
    for endings in (_EMBEDDING_NAMES, _RARER_EMBEDDING_NAMES):
        tables = {
            name: info
            for name, info in tensors.items()
            if _ends(name, endings) and len(info.shape) == 2
        }
        sizes = (settings.get("vocab_size"), settings.get("hidden_size"))
        fitting = {name: info for name, info in tables.items() if sizes == info.shape}
        name = find_tensor(fitting or tables, endings)
        if name is not None:
            return name
    raise ModelUnavailable(
        f"{source}: no input embedding was found among its {len(tensors)} tensors, under "
        f"none of the names in use ({', '.join(_EMBEDDING_NAMES)}, ...). "
        "Give a causal language model whose embedding has such a name"
    )


def decoder_prefix(embedding: str) -> str:
    """The prefix of the decoder's tensor names, from the input embedding's name."""
    decoder, dot, _ = embedding.removesuffix(".weight").rpartition(".")
    return decoder + dot


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in endings)


def find_tensor(tensors: Mapping[str, TensorInfo], endings: tuple[str, ...]) -> str | None:
    """The shortest tensor name whose last components are one of the endings; None if there is none.

    Vision towers and draft layers have the same endings in longer names.
    """
    matches = [name for name in tensors if _ends(name, endings)]
    return min(matches, key=lambda name: (len(name), name), default=None)


def is_tied(config: Mapping[str, Any], *, has_head: bool) -> bool | None:
    """Whether the head is the input embedding: as config.json says, else as stored.

    For a composite model the stored tensors decide, because the settings of the whole and of the
    decoder often disagree. None where config.json asks for a separate head and none is stored.
    """
    if is_composite(config):
        if has_head:
            return False
        settings = [part.get("tie_word_embeddings") for part in (config, text_settings(config))]
        return None if False in settings and True not in settings else True
    setting = config.get("tie_word_embeddings")
    if setting is False and not has_head:
        return None
    return setting if isinstance(setting, bool) else not has_head


def has_other_head(tensors: Mapping[str, TensorInfo], embedding: str) -> bool:
    """Whether there is a head with another name, or a quantized one: `head.weight`, `.qweight`."""
    shape = tensors[embedding].shape
    return any(
        (info.shape == shape and name != embedding) or {"lm_head", "embed_out"} & {*name.split(".")}
        for name, info in tensors.items()
    )
