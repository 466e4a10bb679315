"""The fingerprint depends on the contents and not on the location."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from glitchrun.checkpoint import fingerprint as module
from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.fingerprint import fingerprint
from glitchrun.checkpoint.headers import read_header
from tests.support import raw_checkpoints as raw


def _of(path: Path) -> str:
    checkpoint = resolve(str(path))
    return fingerprint(checkpoint, read_header(checkpoint))


def _flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1]))


def test_a_copy_has_the_same_fingerprint(tmp_path: Path) -> None:
    folder = raw.folder(tmp_path / "one")
    (folder / "README.md").write_text("says nothing about the weights")
    shutil.copytree(folder, tmp_path / "two")
    (tmp_path / "two" / "README.md").unlink()
    assert _of(tmp_path / "two") == _of(folder)


def test_a_renamed_gguf_has_the_same_fingerprint(tmp_path: Path) -> None:
    assert _of(raw.gguf(tmp_path / "a.gguf")) == _of(raw.gguf(tmp_path / "b.gguf"))


def test_a_changed_weight_changes_it(tmp_path: Path) -> None:
    folder = raw.folder(tmp_path)
    before = _of(folder)
    _flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 20)
    assert _of(folder) != before


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokenizer.model"])
def test_it_covers_the_tokenizer(tmp_path: Path, name: str) -> None:
    folder = raw.folder(tmp_path)
    before = _of(folder)
    (folder / name).write_text("{}")
    with_file = _of(folder)
    (folder / name).write_text("{ }")
    assert len({before, with_file, _of(folder)}) == 3


def test_large_files_are_sampled_and_a_retrained_one_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ_WHOLE", 1024)
    monkeypatch.setattr(module, "_BLOCK", 64)
    monkeypatch.setattr(module, "_MIN_BLOCKS", 8)
    tensors = raw.TENSORS | {"model.layers.0.mlp.weight": ("F32", (64, 64))}
    folder = raw.folder(tmp_path, tensors=tensors)
    weights = folder / "model.safetensors"
    before = _of(folder)
    _flip(weights, weights.stat().st_size - 1)
    last = _of(folder)
    raw.folder(tmp_path, tensors=tensors, fill=b"\1")
    assert len({before, last, _of(folder)}) == 3


def test_every_matrix_of_eight_mebibytes_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a scale of 1:4096, any change as long as the sampling stride is noticed."""
    monkeypatch.setattr(module, "_READ_WHOLE", 1024)
    monkeypatch.setattr(module, "_BLOCK", 4)
    monkeypatch.setattr(module, "_STRIDE", 2048)
    monkeypatch.setattr(module, "_MIN_BLOCKS", 2)
    folder = raw.folder(tmp_path, tensors=raw.TENSORS | {"big": ("F32", (5000,))})
    weights = folder / "model.safetensors"
    before, content = _of(folder), weights.read_bytes()
    start = len(content) - 20_000
    for at in range(start, len(content) - 2048, 512):
        weights.write_bytes(content[:at] + b"\1" * 2048 + content[at + 2048 :])
        assert _of(folder) != before


def test_folders_named_like_code_are_ignored(tmp_path: Path) -> None:
    checkpoint = resolve(str(raw.folder(tmp_path / "one")))
    assert checkpoint.path is not None
    (checkpoint.path / "modeling.py").write_text("x = 1\n")
    before = fingerprint(checkpoint, read_header(checkpoint), code=True)
    (checkpoint.path / "package.py").mkdir()
    os.mkfifo(checkpoint.path / "pipe.py")  # reading it would never end
    assert fingerprint(checkpoint, read_header(checkpoint), code=True) == before
