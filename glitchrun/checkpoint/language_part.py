"""Finds the language part of a model for text and images, or text and audio.

Such a model keeps the decoder's settings one level down in config.json, and its tensors under a
prefix of their own beside those of the other parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from glitchrun.checkpoint.tensors import TensorInfo

_WRAPPERS = ("thinker_config",)
"""Settings that hold a whole model, which has a language part in turn (Qwen's omni models)."""
_TEXT = ("text_config", "llm_config", "language_config")
_OTHER_SENSES = ("vision_config", "audio_config", "vq_config", "encoder_config")
_OTHER_PARTS = re.compile(
    r"visi|visual|image|vit\b|vqmodel|audio|speech|sam_|clip|talker|token2wav|projector|resampler"
    r"|connector|perceiver|protein|(^|_)mm_|vit_|qformer"
)
"""First component of a tensor's name, below the decoder's prefix, that is none of the decoder's."""


def is_composite(config: Mapping[str, Any]) -> bool:
    """Whether config.json describes a multimodal model."""
    keys = (*_WRAPPERS, *_TEXT, *_OTHER_SENSES)
    return any(isinstance(config.get(key), dict) for key in keys)


def text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoder's settings: the nested ones where there are any, else config.json itself."""
    for key in (*_WRAPPERS, *_TEXT):
        nested = config.get(key)
        if isinstance(nested, dict):
            return text_settings(nested)
    return config


def is_tied(config: Mapping[str, Any], has_head: bool) -> bool | None:
    """Whether a composite's head is its input embedding; None where it lacks one that it needs.

    What is stored decides: the settings of the whole and those of the decoder often disagree.
    """
    if has_head:
        return False
    said = [part.get("tie_word_embeddings") for part in (config, text_settings(config))]
    return None if False in said and True not in said else True


def language_tensors(
    tensors: Mapping[str, TensorInfo], prefix: str, *, nested: bool
) -> dict[str, TensorInfo]:
    """The tensors of the decoder under `prefix`, and of the head.

    Where the settings are not `nested`, the parts are not told apart by a prefix: what is left out
    are tensors whose names begin with that of another part.
    """
    return {name: info for name, info in tensors.items() if _belongs(name, prefix, nested)}


def is_other_part(path: Sequence[str]) -> bool:
    """Whether a module's path leads into a part for images or sound."""
    return any(_OTHER_PARTS.search(part) for part in path)


def _belongs(name: str, prefix: str, nested: bool) -> bool:
    path = name.split(".")
    if not nested:
        return not _OTHER_PARTS.search(path[0])
    if name.startswith(prefix):
        return not _OTHER_PARTS.search(name[len(prefix) :].split(".")[0])
    # A head of its own, quantized ones (`lm_head.qweight`) among them, and no other part's.
    return path[-2:-1][0:1] in (["lm_head"], ["embed_out"]) and not _OTHER_PARTS.search(path[0])
