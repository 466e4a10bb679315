"""Tables in pages of docs/ that commands write: where, when and on what they were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

import psutil


def rows(path: Path, name: str) -> dict[str, str]:
    """The lines of the table `name` in a page, by the code in their first cell.

    Args:
        path: The page; the table is between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
        name: Of the table.
    """
    table = path.read_text(encoding="utf-8").partition(_marker(name, "begin"))[2]
    lines = table.partition(_marker(name, "end"))[0].splitlines()
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def replace(path: Path, name: str, lines: Sequence[str]) -> None:
    """Puts lines between the markers of the table `name`."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(_marker(name, "begin"))
    _, end, after = rest.partition(_marker(name, "end"))
    path.write_text(before + "\n".join([begin, *lines, end]) + after, encoding="utf-8")


def table(heads: Sequence[str], lines: Mapping[str, str]) -> list[str]:
    """The lines of a table with these heads."""
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines.values()]


def _marker(name: str, which: str) -> str:
    return f"<!-- {name}: {which} -->"


def when() -> str:
    """The day, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def where() -> str:
    """The machine and the versions of what matters."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, Python {platform.python_version()}, torch {version('torch')}, "
        f"MLflow {version('mlflow')}"
    )


@cache
def commit() -> str:
    """The last commit that changed the package, or with `+` another state; empty outside git."""
    try:
        last = _git("log", "-1", "--format=%h", "--", "glitchrun")
        return last + "+" * bool(_git("status", "--porcelain", "--", "glitchrun"))
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def _git(*words: str) -> str:
    root = Path(__file__).parents[1]
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
