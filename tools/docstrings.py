"""Check that the package's docstrings say what a reader needs.

    python -m tools.docstrings [FOLDER]

Prints one line per fault, with the file and line, and exits with 1 if there is any:

- a public module, class, function or method has no docstring;
- a public function takes or returns arrays, and its docstring names no shape such as `(B, T, V)`;
- a public function raises an error that its docstring does not name;
- a field of a strategy's `Config` has no docstring below it.

Public means that no part of the dotted name starts with an underscore. A method that overrides a
method of a base class, or implements one of a `Protocol` or ABC of the package, inherits the
docstring of that method. The functions of click commands need no `Raises:`, because `--help` prints
their docstrings.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef

_ARRAY = re.compile(r"\b(?:Tensor|LongTensor|FloatTensor|BoolTensor|NDArray|ndarray)\b")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_SIZE = rf"(?:{_NAME}|\d+|\*|\.\.\.)(?:\s*[-+*/]+\s*(?:{_NAME}|\d+))*"
_UPPER = r"(?:[A-Z][A-Z0-9_]*|\d+|\.\.\.)"
_SHAPE = re.compile(
    # In backticks: `(B, heads, T)`, `(n,)` or `float32 (B, T)`, but not a call such as `f(x, y)`.
    rf"`(?:[^`\n]*\s)?\((?:|{_SIZE},|{_SIZE}(?:,\s*{_SIZE})+)\)[^`\n]*`"
    rf"|(?<!\w)\((?:{_UPPER},|{_UPPER}(?:,\s*{_UPPER})+)\)"  # without: (B, T, V)
    r"|\bscalar\b"
)
_CLICK = frozenset({"command", "group"})
_BARE_BASES = frozenset(
    {*dir(builtins), "ABC", "Enum", "Generic", "IntEnum", "NamedTuple", "Protocol", "StrEnum"}
)
"""Base classes whose methods a reader is not expected to know from elsewhere."""


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed file of the package."""

    path: Path
    tree: ast.Module
    name: str
    """Dotted, as in `glitchrun.probing.backend`."""

    def classes(self) -> list[ast.ClassDef]:
        """The classes at the module's top level."""
        return [node for node in self.tree.body if isinstance(node, ast.ClassDef)]


@dataclass(frozen=True, slots=True)
class Package:
    """The parsed files of the package, with the names that the checks look up in them."""

    modules: tuple[Module, ...]
    classes: Mapping[str, tuple[ast.ClassDef, ...]]
    aliases: frozenset[str]
    """Dotted names of array types such as `Floats = NDArray[np.float64]`."""

    @classmethod
    def parse(cls, folder: Path) -> Package:
        """Parse every Python file below `folder`."""
        modules = tuple(
            Module(path, ast.parse(path.read_text(encoding="utf-8")), _dotted(path, folder))
            for path in sorted(folder.rglob("*.py"))
        )
        classes: dict[str, tuple[ast.ClassDef, ...]] = {}
        for module in modules:
            for node in module.classes():
                classes[node.name] = (*classes.get(node.name, ()), node)
        return cls(modules, classes, frozenset(_aliases(modules)))

    def aliases_in(self, module: Module) -> frozenset[str]:
        """The names under which `module` defines or imports array types."""
        local = (
            name.rpartition(".")[2]
            for name in self.aliases
            if name.rpartition(".")[0] == module.name
        )
        imported = (
            (alias.asname or alias.name)
            for node in module.tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}.{alias.name}" in self.aliases
        )
        return frozenset((*local, *imported))

    def bases(self, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        """The classes of the package that `node` inherits from, found by their names."""
        for base in node.bases:
            for found in self.classes.get(_last_name(base), ()):
                if found is not node:
                    yield found
                    yield from self.bases(found)

    def inherits_docstring(self, owner: ast.ClassDef, method: str) -> bool:
        """Whether a base class, a protocol or an ABC documents a method of this name.

        True of every method of a class with a base outside the package, which this script does
        not see.
        """
        ancestors = (owner, *self.bases(owner))
        if any(
            _last_name(base) not in self.classes and _last_name(base) not in _BARE_BASES
            for node in ancestors
            for base in node.bases
        ):
            return True
        interfaces = (
            node
            for nodes in self.classes.values()
            for node in nodes
            if {_last_name(base) for base in node.bases} & {"Protocol", "ABC"}
        )
        return any(
            isinstance(member, Function) and member.name == method and ast.get_docstring(member)
            for node in (*ancestors[1:], *interfaces)
            for member in node.body
        )


def _dotted(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _aliases(modules: tuple[Module, ...]) -> Iterator[str]:
    for module in modules:
        for node in module.tree.body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.Subscript | ast.Name | ast.Attribute)
                and _is_array(node.value)
            ):
                yield f"{module.name}.{node.targets[0].id}"


def _is_array(annotation: ast.expr, aliases: frozenset[str] = frozenset()) -> bool:
    """Whether an annotation contains an array type outside `Callable[...]`."""
    text = re.sub(r"Callable\[.*\]", "", ast.unparse(annotation))
    return bool(_ARRAY.search(text)) or any(
        name in aliases for name in re.findall(rf"\b{_NAME}\b", text)
    )


def faults(folder: Path) -> list[str]:
    """One line per fault in the Python files below `folder`."""
    package = Package.parse(folder)
    return [
        f"{module.path}:{line}: {text}"
        for module in package.modules
        if not any(_private(part) for part in module.path.relative_to(folder).parts)
        for line, text in _module_faults(module, package)
    ]


def _module_faults(module: Module, package: Package) -> Iterator[tuple[int, str]]:
    if module.tree.body and not ast.get_docstring(module.tree):
        yield 1, "the module has no docstring"
    aliases = package.aliases_in(module)
    for node in module.tree.body:
        if isinstance(node, Function) and not _private(node.name):
            yield from _function_faults(node, node.name, aliases, inherits=False)
        elif isinstance(node, ast.ClassDef) and not _private(node.name):
            if not ast.get_docstring(node) and node.name != "Config":
                yield node.lineno, f"{node.name} has no docstring"
            for method in node.body:
                if isinstance(method, Function) and not _private(method.name):
                    inherits = package.inherits_docstring(node, method.name)
                    name = f"{node.name}.{method.name}"
                    yield from _function_faults(method, name, aliases, inherits=inherits)
    if "strategies" in module.path.parts:
        for node in module.classes():
            if node.name == "Config":
                for owner in (node, *package.bases(node)):
                    yield from _field_faults(owner)


def _function_faults(
    node: Function, name: str, aliases: frozenset[str], *, inherits: bool
) -> Iterator[tuple[int, str]]:
    text = ast.get_docstring(node)
    decorators = {_last_name(decorator) for decorator in node.decorator_list}
    if not text:
        if not inherits and not decorators & {"setter", "overload", "override"}:
            yield node.lineno, f"{name} has no docstring"
        return
    if _handles_arrays(node, aliases) and not _SHAPE.search(text):
        yield node.lineno, f"the docstring of {name} names no shape such as `(B, T, V)`"
    if not decorators & _CLICK:
        for error in sorted(_raised(node)):
            if not re.search(rf"\b{error}\b", text):
                yield node.lineno, f"the docstring of {name} does not say that it raises {error}"


def _field_faults(owner: ast.ClassDef) -> Iterator[tuple[int, str]]:
    for index, node in enumerate(owner.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            after = owner.body[index + 1] if index + 1 < len(owner.body) else None
            if not (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                yield node.lineno, f"the field {owner.name}.{node.target.id} has no docstring"


def _handles_arrays(node: Function, aliases: frozenset[str]) -> bool:
    """Whether a parameter or the result is annotated with an array type."""
    arguments = [node.args.vararg, *node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments if argument is not None]
    return any(
        _is_array(annotation, aliases)
        for annotation in (*annotations, node.returns)
        if annotation is not None
    )


def _raised(node: Function) -> set[str]:
    """The names of the public errors raised in the function itself, not in functions inside it."""
    found = set()
    pending: list[ast.AST] = list(node.body)
    while pending:
        current = pending.pop()
        if isinstance(current, ast.Raise) and current.exc is not None:
            found.add(_last_name(current.exc))
        if not isinstance(current, Function | ast.ClassDef | ast.Lambda):
            pending += ast.iter_child_nodes(current)
    return {name for name in found if name[:1].isupper() and name != "NotImplementedError"}


def _last_name(node: ast.expr) -> str:
    """`C` of `C`, `a.b.C`, `C(...)` and `C[...]`, and "" of any other expression."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _private(name: str) -> bool:
    return name.startswith("_") and name not in {"__init__.py"}


if __name__ == "__main__":
    found = faults(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "glitchrun")
    print("\n".join(found) if found else "The docstrings are complete.")
    sys.exit(bool(found))
