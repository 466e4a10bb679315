"""A model whose weights stay on disk, and the reader that brings them in layer by layer.

1. `load_streamed` builds the model of transformers without weights (on torch's `meta` device), and
   lists where each tensor is in the weight files.
2. `StreamedModel.read` reads units of tensors in a thread of its own while the caller computes.
   What is in memory at a time is bounded.
3. `filled` puts the tensors of one layer into the empty model while a block runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glitchrun.checkpoint.cache_folder import cache_folder
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.checkpoint.packed_weights import stored_format
from glitchrun.checkpoint.resolve import Checkpoint
from glitchrun.checkpoint.stream_units import (
    Unit,
    Units,
    is_scale,
    stream_units,
    why_not_streamable,
)
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.model.architecture import Architecture, architecture
from glitchrun.model.gguf_conversion import tokenizer_note
from glitchrun.model.library_messages import Report, check_complete, no_report, quiet_libraries
from glitchrun.model.loaded import LoadedModel
from glitchrun.model.loading import add_generation_config, checkpoint_folder
from glitchrun.model.memory_use import bytes_by_dtype, low_memory
from glitchrun.model.placement import pick_device
from glitchrun.model.quantized_cache import kept_units, unpack_kept
from glitchrun.model.quantized_layers import SCHEMES, import_bitsandbytes, unpack_stored
from glitchrun.model.tokenizer_loading import load_tokenizer
from glitchrun.model.weight_reader import Reader, read_tensor
from glitchrun.plan.streaming import StreamPlan, held_bytes, stream_plan
from glitchrun.plan.weight_bytes import load_dtype
from glitchrun.spec.types import ModelSpec

_TRIAL = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 48}
_TRIAL_VOCABULARY = 512


@dataclass(frozen=True, eq=False)
class StreamedModel(LoadedModel):
    """A causal language model without weights in memory; `module` is on torch's `meta` device."""

    units: Units = field(kw_only=True)
    plan: StreamPlan = field(kw_only=True)
    trial: LoadedModel = field(kw_only=True)
    """A small random model of the same class and settings. Its logits show whether the layers as
    written out here compute what transformers does."""
    _kept_head: list[Tensor] = field(default_factory=list, kw_only=True)
    stamps: Mapping[Path, tuple[int, ...]] = field(kw_only=True)
    """Inode, size and time of change of each weight file when the model was loaded."""
    stored_layers: tuple[tuple[Unit, ...], ...] = field(kw_only=True)
    """The layers of the checkpoint, if those of `units` are kept in the cache."""
    is_prequantized: bool = field(kw_only=True)
    """Whether the stored weights are codes and scales."""
    held_bytes: int = field(kw_only=True)
    """Bytes that one weight takes in memory."""

    @property
    def vocab_size(self) -> int:
        return int(self.module.get_input_embeddings().weight.shape[0])

    @property
    def hidden_size(self) -> int:
        return int(self.module.get_input_embeddings().weight.shape[1])

    @property
    def input_embeddings(self) -> Tensor:
        """The input embedding `(V, H)`, read anew from the disk."""
        return torch.cat([*self.embedding_blocks()])

    @property
    def output_embeddings(self) -> Tensor:
        """The output matrix `(V, H)`, read anew from the disk."""
        return torch.cat([tensors["weight"] for _, tensors in self.read(self.units.head)])

    def embedding_blocks(self) -> Iterator[Tensor]:
        """Yields the input embedding in blocks of rows, `(R, H)` each."""
        return (tensors["weight"] for _, tensors in self.read(self.units.embedding))

    def head_blocks(self) -> Iterator[Tensor]:
        """Yields the output matrix in blocks of rows, `(R, H)` each.

        Indicators read it some sixty times, so it is kept until the next pass if a pass needs more.
        """
        size = self.units.whole_head.numel * self.held_bytes
        if size > self.plan.capacity + self.plan.activation_bytes:
            return (tensors["weight"] for _, tensors in self.read(self.units.head))
        if not self._kept_head:
            found = [tensors["weight"] for _, tensors in self.read(self.units.head)]
            self._kept_head.extend(found)
        return iter(self._kept_head)

    @property
    def tied(self) -> bool:
        both = zip(self.units.head, self.units.embedding, strict=False)
        return all(head.tensors == embedding.tensors for head, embedding in both)

    def read(
        self, units: Iterable[Unit], capacity: int | None = None
    ) -> Iterator[tuple[Unit, dict[str, Tensor]]]:
        """Yields each unit with its tensors in the dtype of the weights, such as rows `(R, H)`.

        While the caller works on one unit, the next ones are read, as far as `capacity` bytes
        allow. The caller must drop the tensors of a unit before it asks for the next one.

        Raises:
            ModelUnavailable: a file cannot be read, is shorter than it was, or was replaced.
        """
        units, width = tuple(units), self.held_bytes
        if units[0].kind != "head":
            self._kept_head.clear()
        least = max(unit.numel for unit in units) * width
        reader = Reader(units, max(capacity or self.plan.capacity, least), width, self._convert)
        for unit, tensors in reader:
            self.bytes_read[0] += unit.nbytes
            yield unit, tensors
        self._check_files()

    def read_whole(self, unit: Unit) -> Tensor:
        """Reads the only tensor of a unit: `(H,)`, or a block of rows `(R, H)`.

        Raises:
            ModelUnavailable: as `read` does.
        """
        self.bytes_read[0] += unit.nbytes
        tensors = {name: read_tensor(place) for name, place in unit.tensors.items()}
        self._convert(unit, tensors)
        (tensor,) = tensors.values()
        return tensor

    def _check_files(self) -> None:
        for file, stamp in self.stamps.items():
            if _stamp(file) != stamp:
                raise ModelUnavailable(
                    f"{file}: the file has changed while it was streamed, so the results would be "
                    "another model's; apply again, for a run of the new files"
                )

    def _convert(self, unit: Unit, tensors: dict[str, Tensor]) -> None:
        """Gives stored tensors the dtype of the weights; int8 and int4 are dequantized again."""
        scheme = SCHEMES.get(self.quantization)
        unpacked: set[str] = set()
        if self.stored_layers and unit.kind in ("layer", "expert"):
            scheme, layer = None, self.stored_layers[unit.layer]
            own = next(one for one in layer if (one.kind, one.expert) == (unit.kind, unit.expert))
            unpacked = unpack_kept(tensors, own, self.quantization)
        if self.is_prequantized and unit.kind == "layer":
            module = self.module.base_model.layers[unit.layer]
            shapes = {name: one.shape for name, one in module.named_parameters()}
            unpacked = unpack_stored(tensors, shapes)
        for name, stored in tensors.items():
            if stored.is_floating_point() and name not in unpacked:
                tensors[name] = stored.to(self.compute_dtype)
        if scheme is None:
            return
        if unit.kind == "expert":  # a resident model quantizes gate and up as one matrix
            both = torch.cat([tensors.pop("gate_proj"), tensors.pop("up_proj")])
            gate, up = scheme.quantize(both[None]).matrix(0, torch.float32).chunk(2)
            tensors |= {"gate_proj": gate, "up_proj": up}
        for name, loaded in tensors.items():
            is_linear = name.endswith("_proj.weight") or name == "down_proj"
            if is_linear and loaded.dim() == 2:
                tensors[name] = scheme.quantize(loaded[None]).matrix(0, torch.float32)


def load_streamed(
    spec: ModelSpec,
    plan: StreamPlan | None = None,
    cache: Path | None = None,
    report: Report = no_report,
) -> StreamedModel:
    """Prepares the model that `spec` describes for streaming.

    `plan` says how much of it is in memory at a time; by default what the plan of a run would.

    Raises:
        ModelUnavailable: files are missing or damaged.
        PreflightError: the model's layers cannot be streamed, or a device is missing.
    """
    device = pick_device(spec.device)
    started = time.perf_counter()
    folder = checkpoint_folder(spec, cache, report)
    header = read_header(
        Checkpoint("folder", folder, spec.path),
        allow_pickle=spec.allow_pickle,
        adapter=spec.adapter,
    )
    if reason := why_not_streamable(header):
        raise PreflightError(f"model.residency: {spec.path!r} cannot be streamed: {reason}")
    if spec.quantization in SCHEMES or header.prequantized:
        import_bitsandbytes()
    stored = f"{stored_format(header)} (as stored)" if header.prequantized else None
    stored_units = stream_units(header)
    units, note = _quantized_units(
        stored_units, spec, header, folder, cache or cache_folder(), report
    )
    places = (place for unit in units.body for place in unit.tensors.values())
    files = {*header.files, *(place.file for place in places)}
    stamps = {file: _stamp(file) for file in files}
    module, tokenizer, dtype, trial = _without_weights(spec, header, folder, stored_units, device)
    add_generation_config(module, folder)
    return StreamedModel(
        module=module,
        tokenizer=tokenizer,
        config=module.config,
        device=device,
        dtype=dtype,
        quantization=stored or spec.quantization,
        load_seconds=time.perf_counter() - started,
        peak_bytes=0,
        bytes_by_dtype=bytes_by_dtype(module),
        unquantized=(),
        architecture=header.architecture if header.composite else type(module).__name__,
        tokenizer_note=tokenizer_note(folder),
        cache_note=note,
        residency="streamed",
        units=units,
        stored_layers=() if units is stored_units else stored_units.layers,
        stamps=stamps,
        is_prequantized=bool(header.prequantized),
        held_bytes=held_bytes(header, spec.quantization),
        plan=plan or stream_plan(header, spec.quantization, units, device.type),
        trial=trial,
    )


def _without_weights(
    spec: ModelSpec, header: Header, folder: Path, stored: Units, device: torch.device
) -> tuple[Any, Any, str, LoadedModel]:
    """The model's module on the meta device, its tokenizer, the name of its dtype, and the small
    model of `_trial`.

    Raises:
        ModelUnavailable: weights are missing from the checkpoint.
    """
    with quiet_libraries(), low_memory():
        target = architecture(folder, header, spec)
        tokenizer = load_tokenizer(folder, trust_remote_code=spec.trust_remote_code)
        with torch.device("meta"):
            module = target.model_class(target.config)
        dtype = load_dtype(header, spec.quantization)
        module.requires_grad_(False).eval().to(getattr(torch, dtype))
        decoder = module.base_model
        with torch.device(device):  # in float32; its tables are computed, not stored
            decoder.rotary_emb = type(decoder.rotary_emb)(target.config)
        check_complete(_compared(stored, module, header.head is None), spec.path, module, header)
        trial = _trial(target, tokenizer)
    return module, tokenizer, dtype, trial


def _quantized_units(
    stored: Units, spec: ModelSpec, header: Header, folder: Path, cache: Path, report: Report
) -> tuple[Units, str]:
    """The units as they are read: from the cache where the spec keeps quantized weights there. And
    what was wrong with these."""
    if not spec.keep_quantized or spec.quantization not in SCHEMES or header.prequantized:
        return stored, ""
    checkpoint = Checkpoint("folder", folder, spec.path)
    held = getattr(torch, load_dtype(header, spec.quantization))
    return kept_units(stored, checkpoint, header, spec.quantization, held, cache, report)


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError as error:
        raise ModelUnavailable(f"{file}: cannot be read ({error.strerror})") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _compared(units: Units, module: PreTrainedModel, is_tied: bool) -> dict[str, Any]:
    """Which weights are missing, and which have other shapes than those of the empty model: as the
    loading information of transformers, which `check_complete` reads."""
    stem = f"{module.base_model_prefix}."
    stored = {f"{stem}norm.weight": units.norm.tensors["weight"].info.shape}
    for number, layer in enumerate(units.layers):
        for unit in layer:
            part = f"mlp.experts.{unit.expert}." if unit.kind == "expert" else ""
            at = f"{stem}layers.{number}.{part}"
            stored |= {at + name: place.info.shape for name, place in unit.tensors.items()}
    stored = {name: shape for name, shape in stored.items() if not is_scale(name)}
    for name, blocks in (("embed_tokens", units.embedding), ("lm_head", units.head)):
        at, last = "" if blocks is units.head else stem, blocks[-1]
        rows, columns = last.tensors["weight"].info.shape
        if blocks is units.embedding or not is_tied:
            stored[f"{at}{name}.weight"] = (last.start + rows, columns)
    wanted: dict[str, tuple[int, ...]] = {}
    for name, parameter in module.named_parameters():
        below, _, own = name.partition(".experts.")
        if not own:
            wanted[name] = tuple(parameter.shape)
            continue
        count, rows, columns = parameter.shape
        parts = ("gate_proj", "up_proj") if own == "gate_up_proj" else (own,)
        shape = (rows // len(parts), columns)
        names = (f"{below}.experts.{expert}.{part}" for expert in range(count) for part in parts)
        wanted |= dict.fromkeys(names, shape)
    both = wanted.keys() & stored.keys()
    for name in both:  # codes of two elements each
        if stored[name][1:] == (1,) and 2 * stored[name][0] == prod(wanted[name]):
            stored[name] = wanted[name]
    return {
        "mismatched_keys": [
            (name, stored[name], wanted[name]) for name in both if stored[name] != wanted[name]
        ],
        "missing_keys": wanted.keys() - stored.keys(),
        "unexpected_keys": stored.keys() - wanted.keys(),
    }


def _trial(target: Architecture, tokenizer: Any) -> LoadedModel:
    """A small model of the same class with random weights: its settings scaled down."""
    settings = target.config.to_dict()
    head_dim = getattr(target.config, "head_dim", None) or (
        target.config.hidden_size // target.config.num_attention_heads
    )
    small: dict[str, Any] = {name: size for name, size in _TRIAL.items() if name in settings}
    heads, groups = 4, 2 if target.config.num_key_value_heads > 1 else 1
    small |= {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim}
    small |= {"num_hidden_layers": 2, "vocab_size": _TRIAL_VOCABULARY, "pad_token_id": None}
    for name in ("num_local_experts", "num_experts"):
        if isinstance(settings.get(name), int):
            small[name] = min(settings[name], 4)
    if isinstance(settings.get("layer_types"), list):
        small["layer_types"] = settings["layer_types"][:1] + settings["layer_types"][-1:]
    for nested in ("quantization_config", "torch_dtype", "dtype"):
        settings.pop(nested, None)
    config = type(target.config)(**{**settings, **small})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = target.model_class(config).float().eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)  # the usual initialization gives flat logits
    cpu, kind = torch.device("cpu"), type(module).__name__
    return LoadedModel(module, tokenizer, config, cpu, "float32", "none", 0.0, 0, {}, (), kind)


@contextmanager
def filled(layer: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Puts tensors into an empty layer while the block runs.

    Args:
        layer: A layer on the device `meta`.
        tensors: By the name of the parameter, such as `(R, K)` for a linear layer. Shapes were
            compared when the model was loaded.
    """
    empty: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for name, tensor in tensors.items():
            path, _, own = name.rpartition(".")
            part = layer.get_submodule(path)
            empty.append((part, own, getattr(part, own)))
            setattr(part, own, nn.Parameter(tensor, requires_grad=False))
        yield layer
    finally:
        for part, own, parameter in empty:
            setattr(part, own, parameter)
