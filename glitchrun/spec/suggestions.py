"""The nearest of several names to one that is wrong."""

from __future__ import annotations

from collections.abc import Container, Iterable

_MOST = 500
_ALIKE = 0.6
"""From which likeness (`difflib`'s ratio) a name is offered at all."""
_SLIP = 0.9
"""From which a name is the other, but for a slip of the finger."""
_LONGEST = 64
"""Longer names are no slip of the finger, and comparing takes the product of both lengths."""


def nearest(word: object, names: Iterable[object], cutoff: float = _ALIKE) -> str | None:
    """The name most like `word`; None where none is near."""
    if not isinstance(word, str) or len(word) > _LONGEST:
        return None
    names = list(names)
    if len(names) > _MOST:
        return None
    from difflib import get_close_matches  # only when something is wrong

    candidates = {str(name).lower(): str(name) for name in names if name is not None}
    found = get_close_matches(word.lower(), list(candidates), n=1, cutoff=cutoff)
    if found or cutoff > _ALIKE:
        return candidates[found[0]] if found else None
    # A part of a compound name: `asr` for `asr_threshold`.
    parts = [name for name in candidates if len(name) > 2 and name in word.lower()]
    return candidates[max(parts, key=len)] if parts else None


def nearest_free(word: str, names: Iterable[str], taken: Container[str]) -> str | None:
    """The name most like `word` that is not `taken`, unless a taken one is all but `word`."""
    names = list(names)
    slip = nearest(word, (name for name in names if name in taken), cutoff=_SLIP)
    return slip or nearest(word, (name for name in names if name not in taken))


def did_you_mean(word: object, names: Iterable[object]) -> str:
    """`did you mean 'asr'?`, or what there is to choose from where that is little; else empty."""
    names = list(dict.fromkeys(names))
    found = nearest(word, names)
    if found is not None:
        return f"did you mean {found!r}?"
    return one_of(names) if 0 < len(names) <= 12 else ""


def one_of(names: Iterable[object]) -> str:
    """`one of 'a', 'b', 'c'`; empty where none of them is known."""
    shown = [repr(name) for name in names if name is not None]
    if not shown:
        return ""
    return f"one of {', '.join(shown)}" if len(shown) > 1 else f"only {shown[0]} is known here"
