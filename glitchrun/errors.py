"""The errors a user can cause, and the exit code each one ends a command with.

    GlitchrunError                  1   something a message can explain
    ├── RunError                    1   the run started and could not go on
    ├── Interrupted                 130 a second signal stopped everything at once (SIGTERM: 143)
    ├── UsageError                  2   the command line makes no sense
    ├── InvalidSpec                 3   the spec has problems (in `spec.problems`)
    └── PreflightError              4   the spec is fine, the surroundings are not
        ├── MissingExtra                an optional package is not installed
        ├── ModelUnavailable            no such model, or one that may not be loaded
        ├── DoesNotFit                  the model's memory exceeds what is free, or the spec's
        │                               token ids its vocabulary
        ├── TrackingUnavailable         the MLflow store cannot be reached or written
        │   └── DeletedInMlflow         the run to deliver was deleted in MLflow
        └── RunLocked                   another process is executing the same run

Messages name the file, the value and the remedy. Anything that is not a GlitchrunError is a defect
of glitchrun and keeps its traceback. An OSError about a file becomes one in
`file_access`, and nowhere else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from importlib.util import find_spec


class ExitCode(IntEnum):
    """Exit codes of every command (see docs/commands.md)."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    SPEC_INVALID = 3
    PREFLIGHT = 4
    GATE_FAILED = 5
    GATE_INCONCLUSIVE = 6
    INCOMPLETE = 7
    CHANGES_PENDING = 10
    SIGINT = 130
    SIGTERM = 143


class GlitchrunError(Exception):
    """Base of every error that ends a command with a message instead of a traceback."""

    exit_code = ExitCode.ERROR


class RunError(GlitchrunError):
    """The run started and could not go on."""


class Interrupted(GlitchrunError):
    """A second signal stopped everything at once; what was finished is in the ledger."""

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__("stopped at once; apply again to go on where it was")
        self.exit_code = exit_code


class UsageError(GlitchrunError):
    """The command line makes no sense."""

    exit_code = ExitCode.USAGE


class PreflightError(GlitchrunError):
    """The spec is fine, the surroundings are not."""

    exit_code = ExitCode.PREFLIGHT


class MissingExtra(PreflightError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str = "run") -> None:
        super().__init__(
            f"this command needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'glitchrun[{extra}]'"
        )


def require(*packages: str, extra: str = "run") -> None:
    """Checks that packages are installed, without importing them.

    Raises:
        MissingExtra: names the first one that is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtra(package, extra)


class ModelUnavailable(PreflightError):
    """No such model, or one that may not be loaded as the spec stands."""


class DoesNotFit(PreflightError):
    """The model's memory exceeds what is free, or the spec's token ids its vocabulary."""


class TrackingUnavailable(PreflightError):
    """The MLflow store cannot be reached or written."""


class DeletedInMlflow(TrackingUnavailable):
    """The run to deliver was deleted in MLflow; only `sync --again` restores it."""


class RunLocked(PreflightError):
    """Another process is executing the same run."""


_REMEDIES = {
    errno.EACCES: "change its permissions, or use another path",
    errno.EPERM: "change its permissions, or use another path",
    errno.EROFS: "the file system is read-only: use another path",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room: your quota is used up",
    errno.EFBIG: "make room: no larger file is allowed there",
    errno.ENOENT: "check that the file and its folder exist",
    errno.ENOTDIR: "a file is in the place of a folder: move it",
    errno.EEXIST: "the path already exists: move it",
    errno.EISDIR: "a folder is in the place of a file: move it",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: "a symbolic link leads back to itself: remove it",
    errno.EIO: "the disk or network share failed: check it",
    errno.ESTALE: "the network share has changed: mount it again",
    errno.ENOTCONN: "the network share is gone: mount it again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: close some",
    errno.EINVAL: "check that it is a regular file",
}
_REMEDY = "check that it can be used"


def os_error_message(error: OSError, path: str | os.PathLike[str], what: str) -> str:
    """One line: the path (the error's own where it names one), what failed, why, and the remedy."""
    named = error.filename if isinstance(error.filename, str | os.PathLike) else path
    if os.fspath(named).endswith(".partial"):  # the temporary file that will replace the path
        named = path
    why = error.strerror or str(error) or type(error).__name__
    return f"{os.fspath(named)}: {what} ({why}); {_REMEDIES.get(error.errno or 0, _REMEDY)}"


@contextmanager
def file_access(
    path: str | os.PathLike[str],
    what: str = "cannot be read",
    error: type[GlitchrunError] = RunError,
    then: str = "",
) -> Iterator[None]:
    """Turns an OSError of a `with` block into a GlitchrunError that names path, cause and remedy.

    Args:
        path: What the block works on; named where the OSError names nothing itself.
        what: What failed: `cannot be read`, `cannot be written`.
        error: The kind of error to raise, which decides the exit code.
        then: What to do after the remedy.

    Raises:
        GlitchrunError: of the kind `error`.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno is None or exc.errno == errno.EPIPE:  # of a library; a reader that has left
            raise
        raise error(os_error_message(exc, path, what) + then) from exc
