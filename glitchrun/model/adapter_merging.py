"""Merges an adapter into the weights of a loaded model, with PEFT."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file

from glitchrun.boundary import foreign_errors
from glitchrun.checkpoint.adapter import NO_ADAPTER, Adapter
from glitchrun.checkpoint.headers import Header
from glitchrun.checkpoint.language_part import is_other_part
from glitchrun.errors import MissingExtra, ModelUnavailable

_MODEL = "base_model.model."
"""PEFT's prefix of module names."""


def merge_adapter(module: Any, adapter: Adapter, header: Header, inside: str) -> Any:
    """The module with the adapter's change added to its weights, without PEFT's wrappers.

    `inside` is the prefix of the decoder's names in `module`. Of an adapter that was trained on a
    whole composite model, only the changes of the language part are applied.

    Raises MissingExtra without the package peft, ModelUnavailable for an adapter that does not fit.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise MissingExtra("peft", "peft") from error

    def refused(error: Exception) -> ModelUnavailable:
        detail = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
        return ModelUnavailable(
            f"{adapter.path}: this adapter ({adapter.kind}) cannot be merged into the model: "
            f"{detail}. Merge it with the version of peft that wrote it, save the result, and give "
            "that as model.path"
        )

    with foreign_errors(refused):
        config = peft.PeftConfig.from_pretrained(str(adapter.path))
        config.inference_mode = True
        config.init_lora_weights = False  # the weights are read below
        tensors = _tensors(adapter)
        config.base_model_name_or_path = None  # PEFT would warn about it
        if header.composite:
            tensors = _of_language_part(tensors, module, inside, adapter)
            config.target_modules = _targets(tensors) or config.target_modules
        wrapped = peft.get_peft_model(module, config)
        _check_complete(peft.set_peft_model_state_dict(wrapped, tensors), wrapped, adapter)
        return wrapped.merge_and_unload()


def _tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    file = adapter.files[-1]
    if file.suffix == ".safetensors":
        tensors: dict[str, torch.Tensor] = load_file(file)
    else:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


def _of_language_part(
    tensors: dict[str, torch.Tensor], module: Any, inside: str, adapter: Adapter
) -> dict[str, torch.Tensor]:
    """The tensors that change the language part, by the names of its modules in `module`.

    The prefix of the decoder's names depends on the version of transformers with which the adapter
    was trained. Changes of other parts do not affect text.
    """
    parts = {name for name, _ in module.get_submodule(inside.rstrip(".")).named_children()}
    found = {}
    for name, tensor in tensors.items():
        path = name.removeprefix(_MODEL).split(".")
        at = next((i for i, part in enumerate(path) if part in parts or part == "lm_head"), None)
        if at is None or is_other_part(path[:at]):
            continue
        own = path[at:] if path[at] == "lm_head" else [*inside.rstrip(".").split("."), *path[at:]]
        found[_MODEL + ".".join(own)] = tensor
    if not found:
        raise ModelUnavailable(
            f"{adapter.path}: the adapter does not change the language part of the model; "
            f"model.adapter: {NO_ADAPTER} examines the model without it"
        )
    return found


def _targets(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Full names of the modules to which the LoRA matrices belong."""
    return sorted(
        {
            name.removeprefix(_MODEL).split(".lora_")[0]
            for name in tensors
            if ".lora_" in name and "lora_embedding" not in name
        }
    )


def _check_complete(found: Any, wrapped: Any, adapter: Adapter) -> None:
    """Refuses an adapter if some of its tensors would be ignored or initialized at random."""
    unused = sorted(found.unexpected_keys)
    lacking = sorted(
        name
        for name in found.missing_keys
        if any(mark in name for mark in (wrapped.prefix, "modules_to_save"))
        and "original_module" not in name
    )
    for names, what in ((unused, "fit nothing in the model"), (lacking, "are not in its file")):
        if names:
            raise ModelUnavailable(
                f"{adapter.path}: {len(names)} tensors of the adapter {what}, such as {names[0]}; "
                "adapter and model do not belong together"
            )
