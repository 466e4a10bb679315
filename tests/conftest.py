"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import tiny_models

# Converting SmolLM2 takes half a minute: what one test run converted, the next one finds, and
# `make clean` removes it.
os.environ.setdefault("GLITCHRUN_CACHE", str(Path(__file__).parents[1] / ".cache" / "glitchrun"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LlamaForCausalLM with a byte-level vocabulary of about 400 tokens."""
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with no tracking store configured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path
