"""Parses YAML 1.2 from libyaml's events into a tree with positions, or into located problems.

Parsing is not recursive, and depth and size are bounded, so that hostile input takes no longer than
ordinary input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from glitchrun.spec.nodes import (
    KeyEntry,
    MappingNode,
    Node,
    Place,
    ScalarNode,
    SequenceNode,
    problem_at,
)
from glitchrun.spec.problems import Problem
from glitchrun.spec.spec_files import Source
from glitchrun.spec.yaml_scalars import (
    FROM_PRIVATE,
    BadScalar,
    decode_pairs,
    hide_pairs,
    resolve,
    resolve_tagged,
)
from glitchrun.terminal import shortened

MAX_DEPTH = 64
MAX_NODES = 25_000
"""Largest number of values in a document after its aliases are expanded."""
_MAX_DIRECTIVES = 16
_QUOTE_IT = "put it in quotes if text is meant"

_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = ("str", "int", "float", "bool", "null")

# libyaml breaks lines at these characters, as YAML 1.1 did, which would shift every later position.
# Private-use characters replace them while it parses.
_OLD_BREAKS = {0x85: 0xF0085, 0x2028: 0xF2028, 0x2029: 0xF2029}
_RESTORE = {private: old for old, private in _OLD_BREAKS.items()}
_HAS_OLD_BREAK = re.compile("[\x85\u2028\u2029]")


class _Stop(Exception):
    """Parsing cannot continue because of `problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(slots=True)
class _Open:
    """A mapping or sequence whose end has not been parsed yet."""

    place: Place
    anchor: str | None
    is_mapping: bool
    entries: dict[str, KeyEntry] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)
    key: tuple[str, Place] | None = None
    size: int = 1
    height: int = 1


@dataclass(frozen=True, slots=True)
class _Anchored:
    node: Node
    size: int
    height: int


def parse(source: Source) -> tuple[Node | None, list[Problem]]:
    """Parses `source`. Returns the document and every problem found.

    The node is None if parsing had to stop. Problems that leave the rest readable, such as a
    duplicate key, come with a node.
    """
    builder = _Builder(source)
    try:
        for event in _events(source):
            builder.take(event)
    except _Stop as stop:
        return None, [*builder.problems, stop.problem]
    except yaml.YAMLError as error:
        restore: dict[int, int | str] = {**_RESTORE, **FROM_PRIVATE}
        return None, [*builder.problems, syntax_problem(source, error, restore)]
    if builder.root is None or _is_empty(builder.root):
        if builder.problems:  # the value could not be read: the file is not empty
            return None, builder.problems
        hint = "`glitchrun init NAME` writes a spec to start from"
        return None, [Problem(source.name, 1, 1, "GR014", "the file is empty", hint=hint)]
    return builder.root, builder.problems


def _events(source: Source) -> Iterator[Any]:
    text = source.text
    # libyaml compares each %TAG with all earlier ones: a megabyte of them takes minutes.
    if text.count("%TAG") > _MAX_DIRECTIVES:
        message = f"the file has more than {_MAX_DIRECTIVES} tag directives"
        raise _Stop(Problem(source.name, 1, 1, "GR005", message))
    if _HAS_OLD_BREAK.search(text):
        text = text.translate(_OLD_BREAKS)
    text = hide_pairs(text)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return iter(yaml.parse(text, loader))


class _Builder:
    """Builds the tree from libyaml's events, with an explicit stack instead of recursion."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._restore = bool(_HAS_OLD_BREAK.search(source.text))
        self._has_pairs = hide_pairs(source.text) != source.text
        self._stack: list[_Open] = []
        self._anchors: dict[str, _Anchored] = {}
        self._documents = 0
        self._size = 0

    def take(self, event: Any) -> None:
        """Adds one event to the tree.

        Raises:
            _Stop: parsing cannot continue.
        """
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._start(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._stop(event, "GR015", "a second YAML document starts here",
                           hint="write one experiment per file")  # fmt: skip

    def _scalar(self, event: Any) -> None:
        text = self._text(event)
        place = self._place(event)
        is_plain = not event.style
        top = self._stack[-1] if self._stack else None
        if top is not None and top.is_mapping and top.key is None:
            self._key(event, top, text, place, is_plain)
            return
        node = ScalarNode(self._value(event, text, is_plain), text, place)
        self._add(event, node, event.anchor, 1, 1)

    def _text(self, event: Any) -> str:
        """A scalar's text with the original characters in place of private-use ones."""
        text: str = event.value.translate(_RESTORE) if self._restore else event.value
        if not self._has_pairs:
            return text
        return decode_pairs(text) if event.style == '"' else text.translate(FROM_PRIVATE)

    def _key(self, event: Any, top: _Open, text: str, place: Place, is_plain: bool) -> None:
        if is_plain and text == "<<":
            self._stop(event, "GR012", "the merge key `<<` is not part of YAML 1.2",
                       hint="use `extends`, or an alias as a value")  # fmt: skip
        if event.tag and event.tag not in ("!", _CORE + "str"):
            self._stop(event, "GR013", f"a key cannot have the tag {_tag_text(event.tag)}")
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(ScalarNode(text, text, place), 1, 1)
        top.key = (text, place)

    def _value(self, event: Any, text: str, is_plain: bool) -> Any:
        try:
            if event.tag is None:
                return resolve(text) if is_plain else text
            if event.tag == "!":
                return text
            name = event.tag.removeprefix(_CORE)
            if name in _SCALAR_TAGS and event.tag.startswith(_CORE):
                return resolve_tagged(text, name)
        except BadScalar as error:
            self._note(event, error.code, str(error), _QUOTE_IT if error.code == "GR010" else "")
            return None
        self._stop_at_tag(event)

    def _start(self, event: Any) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", _CORE + ("map" if is_mapping else "seq")):
            self._stop_at_tag(event)
        top = self._stack[-1] if self._stack else None
        if top is not None and top.is_mapping and top.key is None:
            self._stop(event, "GR013", "a key must be plain text, not a list or a mapping")
        if len(self._stack) >= MAX_DEPTH:
            self._stop(event, "GR007", f"nested more than {MAX_DEPTH} levels deep")
        if event.anchor:
            self._anchors.pop(event.anchor, None)  # not usable before its end
        # A block collection spans several lines: mark only its first character.
        self._stack.append(_Open(self._place(event, width=1), event.anchor, is_mapping))

    def _end(self) -> None:
        done = self._stack.pop()
        node: Node = (
            MappingNode(done.entries, done.place)
            if done.is_mapping
            else SequenceNode(tuple(done.items), done.place)
        )
        self._add(None, node, done.anchor, done.size, done.height)

    def _alias(self, event: Any) -> None:
        target = self._anchors.get(event.anchor)
        name = shortened(event.anchor)
        if target is None:
            within = any(open_.anchor == event.anchor for open_ in self._stack)
            why = "is inside the value that it names" if within else "names no anchor before it"
            self._stop(event, "GR011", f"the alias *{name} {why}")
        top = self._stack[-1] if self._stack else None
        if top is not None and top.is_mapping and top.key is None:
            self._stop(event, "GR013", f"a key cannot be an alias (*{name})")
        if len(self._stack) + target.height > MAX_DEPTH:
            self._stop(
                event,
                "GR007",
                f"nested more than {MAX_DEPTH} levels deep through *{name}",
            )
        self._add(event, target.node, None, target.size, target.height)

    def _add(self, event: Any, node: Node, anchor: str | None, size: int, height: int) -> None:
        """Adds a finished value to the collection that contains it."""
        if anchor:
            self._anchors[anchor] = _Anchored(node, size, height)
        if event is not None:  # the parts of a collection are already counted
            self._count(event, size)
        if not self._stack:
            self.root = node
            return
        top = self._stack[-1]
        top.size += size
        top.height = max(top.height, height + 1)
        if not top.is_mapping:
            top.items.append(node)
            return
        assert top.key is not None  # libyaml alternates keys and values
        (key, place), top.key = top.key, None
        if key in top.entries:
            self._duplicate(key, place, top.entries[key].key_place)
        else:
            top.entries[key] = KeyEntry(place, node)

    def _count(self, event: Any, size: int) -> None:
        self._size += size
        if self._size > MAX_NODES:
            self._stop(event, "GR008", f"more than {MAX_NODES:,} values after aliases are expanded",
                       hint="put long lists into a separate file")  # fmt: skip

    def _duplicate(self, key: str, place: Place, first: Place) -> None:
        if len(self.problems) > 1000:
            return
        message = f"the key {shortened(key)!r} is repeated; it is first set on line {first.line}"
        self.problems.append(problem_at(place, "GR006", message))

    def _place(self, event: Any, width: int | None = None) -> Place:
        start, end = event.start_mark, event.end_mark
        if width is None:
            same_line = end.line == start.line
            width = end.column - start.column if same_line else _rest(self.source, start)
        return Place(self.source, start.line + 1, start.column + 1, max(1, width))

    def _note(self, event: Any, code: str, message: str, hint: str) -> None:
        if len(self.problems) <= 1000:
            self.problems.append(problem_at(self._place(event), code, message, hint))

    def _stop(self, event: Any, code: str, message: str, hint: str = "") -> NoReturn:
        raise _Stop(problem_at(self._place(event), code, message, hint))

    def _stop_at_tag(self, event: Any) -> NoReturn:
        hint = "use one of YAML's core tags: !!str !!int !!float !!bool !!null !!map !!seq"
        message = f"the tag {_tag_text(event.tag)} is not supported"
        self._stop(event, "GR009", message, hint)


def _rest(source: Source, start: Any) -> int:
    """Characters from a mark to the end of its line."""
    return len(source.line(start.line + 1).rstrip()) - int(start.column)


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.value is None


def _tag_text(tag: str) -> str:
    return shortened("!!" + tag.removeprefix(_CORE) if tag.startswith(_CORE) else tag)


_HINTS = {
    "cannot start any token": "indent with spaces, not tabs, and quote values that start with a "
    "character such as `%`, `@` or a backquote",
    "tab character": "indent with spaces, not tabs",
    "mapping values are not allowed": "quote a value that contains `: `, or check the indentation",
    "could not find expected ':'": "a key needs a colon and a space after it",
    "expected ',' or": "a flow list or mapping is missing a comma or its closing bracket",
    "alphabetic or numeric character": "quote a value that starts with `*` or `&`",
    "expected comment or line break": "quote a value that starts with `>` or `|`",
    "invalid Unicode character escape": "write the character itself, or its code point with eight "
    'digits, such as "\\U0001F600"; half of a surrogate pair is not a character',
    "expected <block end>": "check the indentation of this line and those above it",
}
# These errors are reported where the parser gave up; the mistake is where the value begins: a quote
# or a bracket that is never closed, a key without its colon.
_SHOWN_AT_START = (
    "could not find expected ':'",
    "unexpected end of stream",
    "alphabetic or numeric character",
    "expected comment or line break",
)
_NEVER_CLOSES = {"flow mapping": "'}'", "flow sequence": "']'", "quoted scalar": "quote"}


def syntax_problem(
    source: Source, error: yaml.YAMLError, restore: Mapping[int, int | str]
) -> Problem:
    """libyaml's `error` in `source` as a problem with a hint.

    `restore` maps private-use characters back to the original ones.
    """
    if not isinstance(error, yaml.MarkedYAMLError):  # a reader error has no position
        what = str(error).partition("\n")[0] or "not YAML"
        return problem_at(Place(source, 1, 1), "GR005", shortened(what, 200))
    what = shortened((error.problem or "not YAML").translate(restore), 200)
    message = f"{what} ({error.context})" if error.context else what
    hint = next((hint for start, hint in _HINTS.items() if start in what), "")
    unclosed = _unclosed(source, error)
    if unclosed:
        message = f"the {unclosed} that closes this is missing ({error.context})"
    at_start = unclosed or any(part in what for part in _SHOWN_AT_START)
    mark = (error.context_mark if at_start else None) or error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if line > len(source.lines):  # libyaml puts the end of the stream on a line after the last
        line, column = len(source.lines), len(source.lines[-1]) + 1
    return problem_at(Place(source, line, column), "GR005", message, hint)


def _unclosed(source: Source, error: yaml.MarkedYAMLError) -> str:
    """What is missing if the file ends inside a flow collection or a quoted text; else empty."""
    mark, context = error.problem_mark, error.context or ""
    if mark is None or any(line.strip() for line in source.lines[mark.line :][1:]):
        return ""
    if source.line(mark.line + 1)[mark.column :].strip():
        return ""
    return next((end for kind, end in _NEVER_CLOSES.items() if context.endswith(kind)), "")
