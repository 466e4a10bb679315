"""What a module of this folder offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glitchrun.imports.document import Document
from glitchrun.imports.found import Found


@dataclass(frozen=True, slots=True)
class Content:
    """What a format's reader makes of a document."""

    tokens: Iterable[Found]
    claimed_model: str | None = None
    lists: str = "verdicts"
    """`verdicts` or `findings`, as `Source.lists`."""
    looked_at: int | None = None
    """As `Source.looked_at`; None where that is what the file lists, or not said."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    repeated: int = 0
    """Entries about a token that say again what another entry said, and are not in `tokens`."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Format:
    """A format by its shape."""

    name: str
    shape: str
    """In one line: the usual file names and what marks them."""
    matches: Callable[[Document], bool]
    read: Callable[[Document], Content]
    """Raises Malformed for what the format does not allow."""
