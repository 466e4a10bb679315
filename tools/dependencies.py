"""Writes docs/dependencies.md, a table of all packages with their licences, and sbom.cdx.json, a
software bill of materials in CycloneDX's JSON.

python -m tools.dependencies

Versions are those of requirements.lock, which has the hashes; licences are those of the installed
packages.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from cyclonedx.contrib.this.builders import this_component
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tools.lock import LOCK, ROOT, direct, locked

PAGE = ROOT / "docs" / "dependencies.md"
SBOM = ROOT / "sbom.cdx.json"
_HEAD = """\
# Dependencies

Written by `python -m tools.dependencies` from `requirements.lock`, which also names the SHA-256 of
every file, and from the licences that the packages declare. `sbom.cdx.json` is the same as a
CycloneDX bill of materials. `pyproject.toml` asks for the packages in **bold**; the others are what
these need.

| package | version | licence |
|---|---|---|
"""


def packages() -> dict[str, str]:
    """The version of every package, torch included, by its normalized name."""
    found = locked(LOCK.read_text(encoding="utf-8"))
    constraints = locked((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    return dict(sorted({**found, "torch": constraints["torch"]}.items()))


def licence(name: str) -> str:
    """What an installed package declares: its SPDX expression, else its classifiers or text."""
    try:
        data = metadata(name)
    except PackageNotFoundError:
        return "not installed on this platform"
    if expression := data.get("License-Expression"):
        return expression
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in data.get_all("Classifier") or ()
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    text = (data.get("License") or "").strip().partition("\n")[0]
    return ", ".join(classifiers) or (text[:60] if text else "not declared")


def _sbom() -> str:
    bom = Bom()
    bom.metadata.tools.components.add(this_component())
    for name, version in packages().items():
        bom.components.add(
            Component(
                name=name,
                version=version,
                type=ComponentType.LIBRARY,
                bom_ref=f"{name}@{version}",
                purl=PackageURL("pypi", None, name, version),
                licenses=[DisjunctiveLicense(name=licence(name))],
            )
        )
    output = JsonV1Dot6(bom).output_as_string(indent=1)
    # Equal inputs give equal files: the random serial number and the time are left out.
    output = re.sub(r'\n "serialNumber": "[^"]*",', "", output)
    return re.sub(r'\n  "timestamp": "[^"]*",', "", output) + "\n"


def main() -> int:
    """Writes both files."""
    wanted = direct()
    rows = []
    for name, version in packages().items():
        shown = f"**{name}**" if name in wanted else name
        rows.append(f"| {shown} | {version} | {licence(name).replace('|', '/')} |\n")
    Path(PAGE).write_text(_HEAD + "".join(rows), encoding="utf-8")
    SBOM.write_text(_sbom(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} and {SBOM.name}: {len(rows)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
