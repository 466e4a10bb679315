"""Fixtures that several rooms share."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glitchrun.prompts import chat_template
from glitchrun.prompts.bounded_process import WorkFailed
from glitchrun.tracking import sqlite_file
from tests.support import stores, tiny_models

# Converting SmolLM2 takes half a minute: what one test run converted, the next one finds, and
# `make clean` removes it.
os.environ.setdefault("GLITCHRUN_CACHE", str(Path(__file__).parents[1] / ".cache" / "glitchrun"))


def pytest_collection_finish() -> None:
    """Takes what the imports left out of garbage collection, which a run starts twice."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def copied_stores() -> Iterator[None]:
    """New MLflow stores are copies of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_file, "_create", stores.create_by_copy)
        yield


@pytest.fixture
def created_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow creates the stores of this test."""
    monkeypatch.setattr(sqlite_file, "_create", stores.create_with_mlflow)


@pytest.fixture(scope="session", autouse=True)
def unbounded_templates() -> Iterator[None]:
    """Chat templates are rendered in this process: forking one of its size takes 50 ms."""

    def run(work: Callable[[], str]) -> str:
        try:
            return work()
        except Exception as error:
            raise WorkFailed(f"{type(error).__name__}: {error}".splitlines()[0]) from error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template, "run_bounded", run)
        yield


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
