"""Asks pip-audit whether a locked package has a known vulnerability; exits with 1 if one has.

python -m tools.audit

Without a vulnerability service it says `not audited` and exits with 0: a check must not depend on
a network. Accepted vulnerabilities are listed in pyproject.toml, `tool.glitchrun.audit`, each with
its reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from tools.lock import LOCK, ROOT, locked

_SECONDS = 120
"""Longest time for all packages."""
_PROBE_SECONDS = 20


def main() -> int:
    """Audits the lock; returns the exit code."""
    version = [sys.executable, "-m", "pip_audit", "--version"]
    if subprocess.run(version, capture_output=True, check=False).returncode:
        print("pip-audit does not start; install it with: make setup")
        return 1
    packages = locked(LOCK.read_text(encoding="utf-8"))
    first = dict([next(iter(packages.items()))])
    if not _audited(_ask(first, _PROBE_SECONDS)):
        print("not audited: no vulnerability service answers")
        return 0
    found = _ask(packages, _SECONDS)
    if not (audited := _audited(found)):
        print("not audited: the vulnerability service stopped answering")
        return 0
    accepted = accepted_vulnerabilities()
    said = [
        f"{one['name']} {one['version']}: {flaw['id']}, fixed in "
        f"{', '.join(flaw['fix_versions']) or 'no version'}"
        for one in audited
        for flaw in one["vulns"]
        if flaw["id"] not in accepted
    ]
    print("\n".join(said) or f"{len(audited)} of {len(packages)} packages audited, none vulnerable")
    return int(bool(said))


def accepted_vulnerabilities() -> dict[str, str]:
    """The reason by the id of each vulnerability that is accepted."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    found: dict[str, str] = tools.get("glitchrun", {}).get("audit", {})
    return found


def _audited(answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in answer if "vulns" in one]


def _ask(packages: dict[str, str], seconds: int) -> list[dict[str, Any]]:
    """What pip-audit says of each package; empty if it does not answer in time."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "packages.txt"
        listed.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format"]
        command += ["json", "--progress-spinner", "off", "--timeout", "5", "-r", str(listed)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
            answer: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            return []
    return answer


if __name__ == "__main__":
    sys.exit(main())
