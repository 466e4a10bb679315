"""The one place where errors of other libraries become errors with a message and a remedy.

A list of exception types is never complete for a changing library. This module decides by
where an exception was raised: inside a library it is foreign, whatever its type; in a
line of glitchrun it is a defect and keeps its traceback.
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
_COMMAND = re.compile(r"pip3? install [^`\n;)]+[^`\n;).,\s]")


@contextmanager
def foreign_errors(explain: Callable[[Exception], GlitchrunError]) -> Iterator[None]:
    """Turn an exception of a library inside the block into the error that `explain` returns.

    Errors of glitchrun pass unchanged, and so do exceptions raised by glitchrun's own code.
    """
    try:
        yield
    except GlitchrunError:
        raise
    except Exception as error:
        if _is_ours(error.__traceback__):
            raise
        raise explain(error) from error


def first_line(error: BaseException) -> str:
    """A foreign error in one line, for use in a message; the error itself stays chained."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def install_command(error: BaseException) -> str | None:
    """The command that installs the package missing in an ImportError, if the error names it."""
    named = _COMMAND.search(" ".join(str(error).split()))
    if named:
        return named[0].replace("'", '"')
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return f"pip install {missing.partition('.')[0].replace('_', '-')}" if missing else None


def _is_ours(traceback: TracebackType | None) -> bool:
    """Whether the innermost line outside the standard library is glitchrun's.

    The block's own frame is the outermost one: it and what it calls directly in compiled code, such
    as `int(...)`, count as ours.
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
