"""Training of a stand-in: its progress messages, and resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools.standin import __main__ as standin
from tools.standin import training
from tools.standin.recipes import RECIPES

TINY = replace(RECIPES["oracle"], steps=6, batch=16, rivals=16, width=16, experts_width=16)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_resumed_training_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    standin.make(TINY, tmp_path / "whole", "mark")
    said = capsys.readouterr().err
    assert "step 6 of 6 (100%)" in said
    assert "left" in said

    monkeypatch.setattr(training, "_KEPT_EVERY", -1.0)
    keep = training._keep

    def stop_after(path: Path, step: int, *state: object) -> None:
        keep(path, step, *state)  # type: ignore[arg-type]
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_keep", stop_after)
    with pytest.raises(SystemExit) as stopped:
        standin.make(TINY, tmp_path / "cut", "mark")
    assert stopped.value.code == 130
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(training, "_keep", keep)
    standin.make(TINY, tmp_path / "cut", "mark")
    assert "resuming from step 3 of 6" in capsys.readouterr().err
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole") != {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
