"""The problems of a spec: what is wrong, where, and which name was probably meant.

GR0xx   the file or its YAML
GR1xx   the schema: keys and values
GR2xx   composition: extends, env, --set, matrix
GR3xx   meaning: steps, gates, templates, searches, probes
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from glitchrun.errors import ExitCode, GlitchrunError

CODES: dict[str, str] = {
    "GR001": "The file cannot be read: it is missing, a folder, a pipe, or not permitted.",
    "GR002": "The file is larger than 1 MiB.",
    "GR003": "The file is not UTF-8.",
    "GR004": "The file contains a control character that YAML does not allow.",
    "GR005": "The YAML cannot be parsed.",
    "GR006": "A mapping contains the same key twice.",
    "GR007": "The YAML is nested more than 64 levels deep.",
    "GR008": "The YAML contains more than 25,000 values after its aliases are expanded.",
    "GR009": "A tag is not one of YAML's core tags, or does not fit its value.",
    "GR010": "A number is too long, or not finite.",
    "GR011": "An alias names no anchor, or an anchor that contains the alias.",
    "GR012": "The merge key `<<` is not part of YAML 1.2; use `extends`, or an alias as a value.",
    "GR013": "A key is not plain text.",
    "GR014": "The file is empty.",
    "GR015": "The file contains more than one YAML document.",
    "GR016": "The top of the file is not a mapping.",
    "GR101": "The key is not known here.",
    "GR102": "A value has the wrong type.",
    "GR103": "A value is not one of the allowed values.",
    "GR104": "A required key is missing.",
    "GR105": "A number is out of bounds.",
    "GR106": "A list or a text is too short or too long.",
    "GR107": "A list contains the same item twice.",
    "GR108": "A text does not have the required form.",
    "GR109": "Keys do not fit together: exactly one of several is allowed, or one needs another.",
    "GR110": "The schema forbids this value.",
    "GR201": "A file named in `extends` cannot be read.",
    "GR202": "Files extend each other in a circle.",
    "GR203": "A file named in `extends` is not a Fragment.",
    "GR204": "An environment variable is not set, has no default, and its value is needed.",
    "GR205": "`extends` is not a list of paths.",
    "GR206": "The value of a `--set` is not YAML.",
    "GR207": "A path in `--set` or in the matrix does not exist in the document.",
    "GR208": "A key cannot be set by `--set` or by the matrix.",
    "GR209": "A matrix axis has no values.",
    "GR210": "A matrix zip group names an unknown axis, or axes of different lengths.",
    "GR211": "A matrix exclusion names an unknown axis, or matches no cell.",
    "GR212": "The matrix has more cells than `max_runs` allows.",
    "GR213": "Every cell of the matrix is excluded.",
    "GR214": "A Fragment was given where an Experiment is needed.",
    "GR215": "Two axes of the matrix set the same value, or one sets a value within the other's.",
    "GR216": "A cell of `matrix.include` names an unknown variant, or is a cell already.",
    "GR301": "Two steps have the same id, or a step's id is reserved.",
    "GR302": "`from` names a step that does not exist.",
    "GR303": "`from` names a later step, or the step itself.",
    "GR304": "A gate names a metric that no step produces.",
    "GR305": "No template has this name.",
    "GR306": "An inline template lacks its placeholder.",
    "GR307": "The template has no place for the system text, or takes no variables.",
    "GR308": "A regular expression does not compile.",
    "GR309": "A range ends before it starts.",
    "GR310": "A parameter is missing that the chosen search or objective needs.",
    "GR311": "A parameter is given that the chosen search does not use.",
    "GR312": "The token file does not exist.",
    "GR313": "Two parameters of a step contradict each other.",
    "GR314": "A step needs a resident model, but the spec asks for a streamed one.",
    "GR315": "The engine local does not use an address.",
    "GR316": "Cells of a matrix ask for different workers.",
    "GR320": "A tag's name is reserved, or MLflow does not accept its name or value.",
    "GR321": "The tracking store must not be written to, or its address is not valid.",
    "GR330": "A probe has the name of a built-in probe or protocol.",
    "GR331": "`{token}` is missing in a probe, or occurs where or as often as it must not.",
    "GR332": "Two keys of a probe contradict each other.",
    "GR333": "A step cannot use a probe that it names.",
    "GR334": "A step cannot use phrases, or a parameter together with phrases.",
    "GR999": "More problems were found than are shown.",
}
"""Every error code with its meaning. A code is never reused for another meaning."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem; problems sort by place. Lines and columns count from 1, columns in
    characters."""

    file: str
    line: int
    column: int
    code: str
    message: str
    path: str = ""
    """Path of the value in the document, such as `steps[0].k`; empty for the whole document."""
    hint: str = ""
    """The remedy; empty if there is none to suggest."""
    via: str = ""
    """Where the value came from if not from the file itself: a fragment, `--set`, a matrix cell."""
    source_line: str = field(default="", compare=False, repr=False)
    width: int = field(default=1, compare=False, repr=False)
    """Number of characters to mark in `source_line`, starting at `column`."""

    def __str__(self) -> str:
        """One line: place, code, message, origin, hint."""
        origin = f" [{self.via}]" if self.via else ""
        hint = f"; {self.hint}" if self.hint else ""
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place}: error[{self.code}] {self.message}{origin}{hint}"


class InvalidSpec(GlitchrunError):
    """The spec has problems; the attribute `problems` contains all of them, sorted by place."""

    exit_code = ExitCode.SPEC_INVALID

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def sorted_problems(problems: Iterable[Problem]) -> list[Problem]:
    """The problems sorted by place. A problem found through several cells or files is kept once."""
    first: dict[tuple[str, int, int, str, str], Problem] = {}
    for problem in problems:
        place = (problem.file, problem.line, problem.column, problem.code, problem.message)
        first.setdefault(place, problem)
    return sorted(first.values())


_MAX_NAMES = 500
"""With more names to choose from, none is suggested: comparing would take too long."""
_MAX_LENGTH = 64
"""Longer words get no suggestion: the time to compare grows with the product of both lengths."""
_SIMILAR = 0.6
"""Smallest similarity (`difflib`'s ratio) of a suggestion."""
_TYPO = 0.9
"""Smallest similarity at which a word is taken for a typing error of a name."""


def nearest(word: object, names: Iterable[object], cutoff: float = _SIMILAR) -> str | None:
    """The name most similar to `word`; None if none is similar enough."""
    if not isinstance(word, str) or len(word) > _MAX_LENGTH:
        return None
    names = list(names)
    if len(names) > _MAX_NAMES:
        return None
    from difflib import get_close_matches  # only when something is wrong

    candidates = {str(name).lower(): str(name) for name in names if name is not None}
    found = get_close_matches(word.lower(), list(candidates), n=1, cutoff=cutoff)
    if found or cutoff > _SIMILAR:
        return candidates[found[0]] if found else None
    # A part of a compound name: `asr` for `asr_threshold`.
    parts = [name for name in candidates if len(name) > 2 and name in word.lower()]
    return candidates[max(parts, key=len)] if parts else None


def nearest_free(word: str, names: Iterable[str], taken: Container[str]) -> str | None:
    """The most similar name that is not in `taken`; one in `taken` if `word` is a typo of it."""
    names = list(names)
    typo_of = nearest(word, (name for name in names if name in taken), cutoff=_TYPO)
    return typo_of or nearest(word, (name for name in names if name not in taken))


def did_you_mean(word: object, names: Iterable[object]) -> str:
    """`did you mean 'asr'?`; else all of at most 12 names; else empty."""
    names = list(dict.fromkeys(names))
    found = nearest(word, names)
    if found is not None:
        return f"did you mean {found!r}?"
    return one_of(names) if 0 < len(names) <= 12 else ""


def one_of(names: Iterable[object]) -> str:
    """`use one of 'a', 'b', 'c'`; empty if all names are None (not known yet)."""
    shown = [repr(name) for name in names if name is not None]
    if not shown:
        return ""
    return f"use one of {', '.join(shown)}" if len(shown) > 1 else f"the only choice is {shown[0]}"
