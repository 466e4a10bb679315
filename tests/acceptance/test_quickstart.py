"""The README's first command, on a small part of the vocabulary."""

from __future__ import annotations

import json
import re
from pathlib import Path

from glitchrun import find_runs
from tests.support.commands import run

ROOT = Path(__file__).parents[2]
SMALLER = {
    "tokens.categories": "[byte, special]",
    "steps[1].attempts": 2,
    "steps[1].max_new_tokens": 3,
    "steps[1].controls": 2,
    "steps[2].probes": "[assistant_explain]",  # the shortest of magikarp's three
}
SMALL = [word for path, value in SMALLER.items() for word in ("--set", f"{path}={value}")]


def spec_of_the_readme() -> str:
    """The spec that the README's first command applies, by way of the Makefile."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    target = re.search(r"```sh\nmake (\w+)\n```", readme)
    assert target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(rf"^{target[1]}:.*\n\t\$\(BIN\)/glitchrun apply (\S+)$", makefile, re.M)
    assert recipe
    return recipe[1]


def test_it_finds_confirms_and_says_where_to_look(tmp_path: Path) -> None:
    spec = str(ROOT / spec_of_the_readme())
    done = run(tmp_path, "apply", spec, *SMALL)
    assert done.returncode == 0, done.stderr
    (result,) = find_runs(root=tmp_path / "mlruns")
    metrics = result.metrics
    assert 300 < metrics["mine/screens"] < 400
    assert 0 < metrics["asr/confirmed"] <= metrics["mine/glitch"] <= metrics["mine/verified"]
    assert metrics["mine/recall_low"] >= 0.8
    assert metrics["shown/verified"] == metrics["mine/glitch"]
    assert 0 <= metrics["shown/glitch"] <= metrics["mine/glitch"]
    folder = result.artifacts
    lines = (folder / "tokens.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert sum(bool(row["confirmed"]) for row in rows) == metrics["asr/confirmed"]
    said = done.stdout + done.stderr
    shown = f"{metrics['mine/glitch']:,.0f} tokens fail in chat, {metrics['shown/glitch']:,.0f} of"
    assert shown in said
    assert str(metrics["asr/confirmed"]) in said
    assert "report.html" in said
    assert "glitchrun ui" in said
    assert (folder / "report.html").stat().st_size > 10_000
