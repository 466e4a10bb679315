"""`glitchrun explain`: where a threshold comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from glitchrun.cli import main
from glitchrun.ledger import ROOT
from tests.support.records import write_run


def test_threshold_without_origin_is_called_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / ROOT)  # of its thresholds only `asr` has a place in a file
    done = CliRunner().invoke(main, ["explain", "latest", "mine/glitch"])
    assert done.exit_code == 0, done.output
    lines = {line.split()[1]: line for line in done.output.splitlines() if "threshold  " in line}
    assert lines["probability"].endswith("(default)")
    assert lines["asr"].endswith(":14:9)")
