"""Adapters in PEFT's format for the tiny models. Random from a seed, and far from zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel


def save_adapter(
    model: PreTrainedModel, folder: Path, *, kind: str = "Lora", seed: int = 0, **settings: Any
) -> Path:
    """Wraps `model` in an adapter with random weights, saves the adapter, and leaves it applied."""
    import peft

    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **settings)
    wrapped = peft.get_peft_model(model, config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if wrapped.prefix in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    wrapped.save_pretrained(folder)
    return folder
