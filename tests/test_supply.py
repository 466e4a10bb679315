"""The lock, the list of dependencies and the audit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tools import audit, lock

_ROOT = Path(__file__).parents[1]
LOCK = lock.LOCK.read_text(encoding="utf-8")


def test_lock_fits_the_ranges_and_names_no_index() -> None:
    assert lock.objections(LOCK) == []
    assert len(lock.locked(LOCK)) > 100
    assert "://" not in LOCK
    assert "torch" not in lock.locked(LOCK)
    assert not [name for name in lock.locked(LOCK) if lock.WITHOUT.fullmatch(name)]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (re.sub(r"\npytest==[^ ]+", "\npytest==1.0", LOCK), "pytest is 1.0 in the lock and"),
        (LOCK.replace("\nclick==", "\nclack=="), "click of pyproject.toml is not in the lock"),
        (LOCK + "new==1.0\n", "new==1.0 has no hash"),
    ],
)
def test_lock_that_does_not_fit_is_reported(changed: str, says: str) -> None:
    assert any(one.startswith(says) for one in lock.objections(changed))


def test_every_package_is_listed_with_its_licence() -> None:
    page = (_ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*{0,2}([\w.-]+?)\*{0,2} \| (\S+) \| (.+) \|$", page, re.MULTILINE)
    listed = {name: version for name, version, _ in rows if name != "package"}
    assert listed.items() >= lock.locked(LOCK).items()
    assert listed.keys() - lock.locked(LOCK).keys() == {"torch"}
    bom = json.loads((_ROOT / "sbom.cdx.json").read_text(encoding="utf-8"))
    assert {one["name"]: one["version"] for one in bom["components"]} == listed


def test_audit_without_a_service_passes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in ([], [{"name": "a", "skip_reason": "not found"}]):
        monkeypatch.setattr(audit, "_ask", lambda packages, seconds, answer=answer: answer)
        assert audit.main() == 0
        assert capsys.readouterr().out.startswith("not audited")


def test_audit_reports_what_is_not_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flaws = [{"id": name, "fix_versions": ["2"]} for name in ("A-1", "A-2")]
    found = [{"name": "a", "version": "1", "vulns": flaws}]
    monkeypatch.setattr(audit, "_ask", lambda packages, seconds: found)
    monkeypatch.setattr(audit, "accepted_vulnerabilities", lambda: {"A-2": "not reachable"})
    assert audit.main() == 1
    assert capsys.readouterr().out == "a 1: A-1, fixed in 2\n"
