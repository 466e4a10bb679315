"""Tables of the objects that a spec names: the built-in ones, and those of installed packages.

A package outside the tree adds an object by an entry point:

    [project.entry-points."glitchrun.strategies"]
    echo = "my_package.echo:STRATEGY"

The spec layer imports nothing above it. A registry of objects that belong to a higher layer names
their table as `module:attribute` and imports it on first use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from glitchrun.errors import PreflightError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Objects of one kind by the names that a spec gives them, built-in ones first.

    Looking up a built-in name reads nothing from disk. Iterating, and looking up any other name,
    loads the entry points of the group.

    Args:
        kind: What one object is called in messages, such as `strategy`.
        group: Name of the entry point group, such as `glitchrun.strategies`.
        expected: Class of the objects.
        built_in: The built-in objects by name, or `module:attribute` where that table is.
    """

    def __init__(
        self, kind: str, group: str, expected: type[T], built_in: Mapping[str, T] | str
    ) -> None:
        self.kind = kind
        self._group = group
        self._expected = expected
        self._table = built_in

    @cached_property
    def built_in(self) -> Mapping[str, T]:
        """The objects of this package, without those of other packages."""
        if not isinstance(self._table, str):
            return self._table
        found: Mapping[str, T] = imported(self._table)
        return found

    @cached_property
    def outside(self) -> Mapping[str, T]:
        """The objects of other packages, by the names of their entry points.

        Raises:
            PreflightError: an entry point cannot be loaded, has the name of a built-in object or of
                another entry point, or names something of the wrong class.
        """
        found: dict[str, T] = {}
        for entry in self._entries:
            if entry.name in self.built_in or entry.name in found:
                raise PreflightError(
                    f"{self._described(entry)} has a name that is taken; rename the entry point, "
                    f"or {_uninstall(entry)}"
                )
            found[entry.name] = self._loaded(entry)
        return found

    def origin(self, name: str) -> str | None:
        """Name and version of the package that adds an object; None for a built-in one."""
        if name in self.built_in:
            return None
        return next(_package(entry) for entry in self._entries if entry.name == name)

    def code(self, name: str, place: str) -> Any:
        """What `module:attribute` names, imported for the object `name`.

        Raises:
            PreflightError: the object is of another package, and the import fails.
        """
        if name in self.built_in:
            return imported(place)
        entry = next(entry for entry in self._entries if entry.name == name)
        with self._importing(entry, place):
            return imported(place)

    @cached_property
    def _entries(self) -> list[EntryPoint]:
        return _entry_points(self._group)

    @contextmanager
    def _importing(self, entry: EntryPoint, place: str) -> Iterator[None]:
        from glitchrun.boundary import first_line, foreign_errors

        def failed(error: Exception) -> PreflightError:
            return PreflightError(
                f"{self._described(entry)} cannot be imported from {place}: "
                f"{first_line(error)}; repair the package, or {_uninstall(entry)}"
            )

        try:
            with foreign_errors(failed):
                yield
        except (ImportError, AttributeError, SyntaxError) as error:
            raise failed(error) from error

    def _loaded(self, entry: EntryPoint) -> T:
        with self._importing(entry, entry.value):
            found = entry.load()
        if not isinstance(found, self._expected):
            raise PreflightError(
                f"{self._described(entry)} must be an instance of {self._expected.__module__}."
                f"{self._expected.__name__}, but {entry.value} is a {type(found).__name__}; repair "
                f"the package, or {_uninstall(entry)}"
            )
        if (named := getattr(found, "name", entry.name)) != entry.name:
            raise PreflightError(
                f"{self._described(entry)} has the name {named!r} in {entry.value}; repair the "
                f"package, or {_uninstall(entry)}"
            )
        return found

    def _described(self, entry: EntryPoint) -> str:
        return f"the {self.kind} {entry.name!r} of the package {_package(entry)}"

    def __getitem__(self, name: str) -> T:
        return self.built_in[name] if name in self.built_in else self.outside[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from self.outside

    def __len__(self) -> int:
        return len(self.built_in) + len(self.outside)


def imported(place: str) -> Any:
    """The object that `module:attribute` or `module:class.attribute` names."""
    module, _, names = place.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"


def _uninstall(entry: EntryPoint) -> str:
    return f"uninstall it: pip uninstall {entry.dist.name}" if entry.dist else "uninstall it"


def _entry_points(group: str) -> list[EntryPoint]:
    """The entry points of a group, in the order of their names."""
    if f"[{group}]" not in _declared():
        return []
    from importlib.metadata import entry_points

    return sorted(entry_points(group=group), key=lambda entry: entry.name)


_DECLARED: dict[tuple[str, ...], str] = {}


def _declared() -> str:
    """The text of every installed entry point file that mentions glitchrun.

    Importing importlib.metadata takes 70 ms, a fifth of `glitchrun validate`, and reading these
    files 3 ms. So the module is imported only where a package adds something.
    """
    key = tuple(sys.path)
    if key not in _DECLARED:
        _DECLARED[key] = "\n".join(
            text
            for folder in sys.path
            for text in _entry_point_files(folder)
            if "glitchrun." in text
        )
    return _DECLARED[key]


def _entry_point_files(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder or ".") as entries:
            found = [one.path for one in entries if one.name.endswith((".dist-info", ".egg-info"))]
    except OSError:  # not a folder, or one that is gone
        return
    for path in found:
        try:
            yield Path(path, "entry_points.txt").read_text(encoding="utf-8", errors="replace")
        except OSError:  # most packages have none
            continue
