"""Turns errors of other libraries into errors with a message and a remedy.

No list of exception types is complete for a library that changes. This module decides by where an
exception was raised: in a library, it is turned into a message; in a line of glitchrun, it is a
defect and keeps its traceback.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from glitchrun.errors import GlitchrunError

_OURS = str(Path(__file__).parent) + "/"
_STANDARD = sysconfig.get_path("stdlib") + "/"
_INSTALLED = re.compile(r"/(site|dist)-packages/")
OUT_OF_MEMORY = (
    "memory ran out; close other programs, raise the limit of this one (ulimit -v), or give the "
    "steps a smaller batch_size. What was measured is stored; apply again to continue from there"
)
_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "could not create a primitive",  # oneDNN, which had no memory for its copy of a matrix
    "can't start new thread",
    "ThreadPoolBuildError",
)
_COMMAND = re.compile(r"pip3? install [^`\n;)]+[^`\n;).,\s]")


@contextmanager
def foreign_errors(explain: Callable[[Exception], GlitchrunError]) -> Iterator[None]:
    """Turns an exception of a library in a `with` block into the error that `explain` returns.

    Errors and defects of glitchrun pass unchanged.

    Args:
        explain: Returns the error for an exception of a library.

    Raises:
        GlitchrunError: a library raised an exception.
    """
    try:
        yield
    except GlitchrunError:
        raise
    except Exception as error:
        if _is_ours(error.__traceback__):
            raise
        raise explain(error) from error
    except BaseException as error:
        if not is_panic(error) or is_out_of_memory(error):
            raise
        raise explain(RuntimeError(f"it failed inside: {error}")) from error


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library written in Rust, such as tokenizers.

    Its class is not an Exception and cannot be imported; it has the same name in every library.
    """
    return type(error).__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU. Does not import torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    may_say_so = isinstance(error, RuntimeError | OSError) or is_panic(error)
    return may_say_so and any(words in str(error) for words in _MEMORY)


def first_line(error: BaseException) -> str:
    """The type and the first line of an error, for use in a message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def install_command(error: BaseException) -> str | None:
    """The command that installs the package that an ImportError lacks; None if it names none."""
    named = _COMMAND.search(" ".join(str(error).split()))
    if named:
        return named[0].replace("'", '"')
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return f"pip install {missing.partition('.')[0].replace('_', '-')}" if missing else None


def _is_ours(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame outside the standard library is in glitchrun.

    The outermost frame is the `with` block. Compiled code that it calls directly, such as
    `int(...)`, has no frame and counts as glitchrun's.
    """
    ours = True
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if file.startswith(_OURS):
            ours = True
        elif _INSTALLED.search(file) or not _is_standard(file):
            ours = False
        traceback = traceback.tb_next
    return ours


def _is_standard(file: str) -> bool:
    return file.startswith((_STANDARD, "<frozen"))
