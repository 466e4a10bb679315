"""A page of Markdown tables that a benchmark writes."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
import transformers


@dataclass
class MarkdownPage:
    """Lines of a section, printed as they are added, and the faults found meanwhile."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, line: str = "") -> None:
        """Adds a line."""
        self.lines.append(line)
        click.echo(line)

    def table(self, head: Sequence[str]) -> None:
        """Begins a table."""
        self.add()
        self.add("| " + " | ".join(head) + " |")
        self.add("|" + "---|" * len(head))

    def row(self, *cells: object) -> None:
        """Adds a row to the table."""
        self.add("| " + " | ".join(map(str, cells)) + " |")


def heading() -> str:
    """Returns a heading with the date and the name of the GPU."""
    today = datetime.datetime.now(datetime.UTC).date()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: not run on one"
    return f"## {today}, {gpu}"


def versions() -> str:
    """Returns a line with the versions of what runs the model."""
    try:
        import bitsandbytes

        quantizer = bitsandbytes.__version__
    except ImportError:
        quantizer = "not installed"
    tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, bitsandbytes "
        f"{quantizer}, TF32 {tf32}."
    )


def replace_section(page: Path, lines: Sequence[str]) -> None:
    """Replaces the section of the same heading, or inserts this one before all others."""
    text = page.read_text(encoding="utf-8") if page.exists() else "# On a GPU\n"
    section = "\n".join(lines).strip() + "\n"
    title, *others = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    others = [other.strip() + "\n" for other in others if not other.startswith(lines[0] + "\n")]
    page.write_text("\n".join([title.strip() + "\n", section, *others]), encoding="utf-8")
