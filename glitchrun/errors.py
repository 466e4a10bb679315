"""The errors that a command reports with a message, and the exit code of each.

    GlitchrunError                  1    base class
    ├── RunError                    1    a run failed, or its files cannot be used
    │   ├── NewerLedger                  a newer glitchrun wrote the ledger (`ledger.checksums`)
    │   └── IdentityLost                 run.json and the ledger are damaged (`ledger.identity`)
    ├── Interrupted                 130  a second signal stopped the run immediately (SIGTERM: 143)
    ├── UsageError                  2    the arguments of the command are invalid
    ├── InvalidSpec                 3    the spec has problems (`spec.problems`)
    └── PreflightError              4    the spec is valid, but this machine cannot run it
        ├── MissingExtra                 an optional package is not installed
        ├── ModelUnavailable             the model does not exist or must not be loaded
        ├── DoesNotFit                   the model needs more memory than is free, or the spec's
        │                                token ids exceed the vocabulary
        ├── TrackingUnavailable          the MLflow store cannot be reached or written
        │   └── DeletedInMlflow          the run to deliver was deleted in MLflow
        └── RunLocked                    another process is executing the run

Exit codes 5 to 10 are results, not errors: see `ExitCode`. A message names the file or value and
the remedy. Any other exception is a defect of glitchrun and keeps its traceback. `file_access`
turns an OSError about a file into one of these errors; `boundary.foreign_errors` does so with
errors of other libraries.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from importlib.util import find_spec


class ExitCode(IntEnum):
    """The exit codes of all commands; docs/commands.md describes them."""

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
    """An error that ends a command with a message instead of a traceback."""

    exit_code = ExitCode.ERROR


class RunError(GlitchrunError):
    """A run failed, or its files cannot be used."""


class Interrupted(GlitchrunError):
    """A second signal stopped the run immediately; its finished part is in the ledger."""

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__("stopped immediately; apply again to continue where it stopped")
        self.exit_code = exit_code


class UsageError(GlitchrunError):
    """The arguments of the command are invalid."""

    exit_code = ExitCode.USAGE


class PreflightError(GlitchrunError):
    """The spec is valid, but this machine cannot run it."""

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
    """The model does not exist, or the spec does not permit loading it."""


class DoesNotFit(PreflightError):
    """The model needs more memory than is free, or token ids exceed the vocabulary."""


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
    """The message about an OSError in one line: path, failure, reason and remedy.

    Args:
        error: The error. Its own path has priority.
        path: The path that was used.
        what: The failure, such as `cannot be read`.
    """
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
    """Turns an OSError in a `with` block into an error that names path, reason and remedy.

    Args:
        path: The path that the block uses; shown if the OSError has none.
        what: The failure, such as `cannot be read`.
        error: The class of the error, which decides the exit code.
        then: Text that follows the remedy.

    Raises:
        GlitchrunError: of the class `error`.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno is None or exc.errno == errno.EPIPE:  # not from the OS; a closed pipe
            raise
        raise error(os_error_message(exc, path, what) + then) from exc
