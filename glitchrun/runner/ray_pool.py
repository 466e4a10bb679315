"""Workers in a Ray cluster: starts them, and checks that they can be used.

1. `RayEngine` connects to the cluster when the first run needs its model, and starts `workers`
   actors. On this machine the cluster is its own, on loopback, and ends with the command.
2. Every worker must have this glitchrun, torch and transformers, and the same model files.
3. Each run gets a share of the workers, in which `runner/ray_executor.py` executes its steps.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from glitchrun.errors import PreflightError, require
from glitchrun.ledger.lock import hold, is_held
from glitchrun.plan.build import PlannedRun
from glitchrun.plan.workers import Staff
from glitchrun.report.formatting import counted
from glitchrun.runner.ray_executor import Member, RayExecutor, WorkerLost, answer_of, submit
from glitchrun.runner.ray_messages import about_here, mismatch
from glitchrun.runner.signals import Interrupt

_STORE_BYTES = 128 << 20
"""Shared memory of Ray's object store on this machine; what workers exchange is a few kilobytes."""
_START_SECONDS = 60.0
"""Seconds to wait for all workers before a step begins with those that have started."""
_MOST_SECONDS = 600.0
"""Seconds to wait for the first worker; a cluster may have to start a machine for it."""
_MOST_LOSSES = 5
"""Workers that may end while they start."""
_RETRY_SECONDS = 1.0
_FOLDER = "glitchrun-ray-"
_YOUNG_SECONDS = 60.0
_LONG_FOLDER = 40
"""Characters; Ray's sockets have names of at most 107 characters, most of them its own."""


def _shell(threads: int) -> Any:
    """The class of the actors. It is defined in a function so that Ray pickles it by value, and it
    can report what a worker is even on a host without glitchrun."""

    class Shell:
        """Reports what a worker is, and calls `runner.ray_worker.Worker`."""

        def __init__(self) -> None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            self._worker: Any = None

        def about(self) -> dict[str, str]:
            import platform

            found = {"host": socket.gethostname(), "python": platform.python_version()}
            for name in ("glitchrun", "torch", "transformers"):
                try:
                    found[name] = version(name)
                except PackageNotFoundError:
                    found[name] = ""
            return found

        def process(self) -> int:
            return os.getpid()

        def call(self, method: str, payload: bytes, helpers: Any = ()) -> Any:
            if self._worker is None:
                from glitchrun.runner.ray_worker import Worker

                self._worker = Worker(self.about())
            return self._worker.call(method, payload, helpers)

    return Shell


class RayEngine:
    """The engine that executes runs in workers. Use as a context manager."""

    def __init__(self, staff: Staff) -> None:
        """`staff` says how many workers there are, where, and with what."""
        self._staff = staff
        self._lock = threading.Lock()
        self._members: list[Member] = []
        """The workers, once they are checked."""
        self._refusal = ""
        """Why there are none; empty unless they were refused."""
        self._folder = ExitStack()
        """Removes the folder of this command's own cluster."""
        self._connected = False
        """Whether this engine has connected to the cluster; an earlier connection stays."""
        require("ray", extra="ray")

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the workers, and the cluster if it is this command's own."""
        import ray

        if not self._connected:
            _end_actors(self._members)
            return
        ray.shutdown()
        self._folder.close()

    def shares(self, say: Callable[[str], None], interrupt: Interrupt) -> list[_Share]:
        """The engines of the runs that are executed side by side.

        For several runs this call starts the workers, because Ray's processes end with the thread
        that started them, and each share needs a worker that has started. If there is only one
        share, its first run starts them.

        Raises:
            PreflightError: see `members`.
            Stopped: a signal came while waiting for the workers.
        """
        many = self._staff.side_by_side
        if many > 1:
            many = min(many, sum(bool(member.host) for member in self.members(say, interrupt)))
        return [_Share(self, number, many) for number in range(many)]

    def share(self, number: int, of: int, members: Sequence[Member]) -> list[Member]:
        """The workers of run `number` of `of` runs side by side. Workers that have started are
        divided first, then those that Ray has not started yet, which may help later."""
        started = [member for member in members if member.host]
        late = [member for member in members if not member.host]
        own = [*started[number::of], *late[number::of]]
        return own if self._staff.engine == "ray" else own[:1]

    def members(self, say: Callable[[str], None], interrupt: Interrupt) -> list[Member]:
        """The workers, started by the first call and checked. At least one has started.

        Raises:
            PreflightError: there is no such cluster, no worker starts, or one has other versions.
            Stopped: a signal came while waiting for the workers.
        """
        with self._lock:
            if self._refusal:
                raise PreflightError(self._refusal)
            if not self._members:
                self._connect()
                say(f"workers: starting {self._staff.text}")
                created = self._create_actors()
                try:
                    self._wait(created, say, interrupt)
                    self._members = created
                except PreflightError as error:
                    self._refusal = str(error)
                    raise
                finally:
                    if not self._members:
                        _end_actors(created)
            return self._members

    def _connect(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        # A call after the end of the cluster must not start another one; read by `import ray`.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        staff = self._staff
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if staff.address == "local":
            # The name says more than it does: Ray then takes the loopback address for its own. It
            # reads these when it is imported; a caller that has imported it has set its own.
            if "ray" not in sys.modules:
                os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
                os.environ["RAY_AUTH_MODE"] = "token"
                os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            parent = tempfile.gettempdir()
            parent = parent if len(parent) <= _LONG_FOLDER else "/tmp"  # nosec B108 # a new folder in it
            remove_left_over(Path(parent))
            own = tempfile.TemporaryDirectory(
                prefix=_FOLDER, dir=parent, ignore_cleanup_errors=True
            )
            folder = self._folder.enter_context(own)
            self._folder.enter_context(hold(Path(folder)))
            options |= {
                "num_cpus": staff.workers * staff.cpus,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "_temp_dir": folder,
            }
        import ray

        if ray.is_initialized():
            return
        self._connected = True
        try:
            with _same_handler(signal.SIGTERM):
                ray.init(address=staff.address, **options)
        except (ConnectionError, RuntimeError, OSError, ValueError, ImportError) as error:
            first = str(error).strip().partition("\n")[0]
            remedy = {
                "local": "check the memory and the limits of this machine",
                "auto": "start a cluster here with `ray start --head`, set RAY_ADDRESS, or set "
                "execution.address: local",
            }.get(staff.address, "check the address, and that the cluster's client server is up")
            raise PreflightError(
                f"execution.address {staff.address!r}: Ray cannot be used ({first}); {remedy}"
            ) from error

    def _create_actors(self) -> list[Member]:
        import ray

        staff = self._staff
        actor = ray.remote(_shell(staff.cpus)).options(
            num_cpus=staff.cpus, num_gpus=staff.gpus, max_restarts=-1, max_task_retries=0
        )
        return [Member(actor.remote()) for _ in range(staff.workers)]

    def _wait(
        self, created: Sequence[Member], say: Callable[[str], None], interrupt: Interrupt
    ) -> None:
        """Waits until the workers have started, and checks their versions."""
        import ray

        began = told = time.monotonic()
        asked = {submit(member.actor.about): member for member in created}
        here, losses = about_here(), 0
        while asked:
            ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=_RETRY_SECONDS)
            for reference in ready:
                member = asked.pop(reference)
                try:
                    about = answer_of(reference)
                except WorkerLost:  # Ray starts it again
                    losses += 1
                    if losses >= _MOST_LOSSES:
                        raise PreflightError(
                            f"{losses} workers ended while they started; look at the memory of the "
                            f"hosts, and at the logs of Ray; {self._room()}"
                        ) from None
                    time.sleep(_RETRY_SECONDS)
                    asked[submit(member.actor.about)] = member
                    continue
                member.host = about["host"]
                if reason := mismatch(here, about):
                    raise PreflightError(f"the worker on {member.host} is refused: {reason}")
            interrupt.check()
            waited = time.monotonic() - began
            started = len(created) - len(asked)
            if asked and time.monotonic() - told > 10:
                told = time.monotonic()
                say(f"workers: {started} of {len(created)} started; {self._room()}")
            if asked and started and waited > _START_SECONDS:
                say(f"workers: beginning with {started} of {len(created)}")
                return
            if asked and waited > _MOST_SECONDS:
                raise PreflightError(
                    f"no worker has started in {_MOST_SECONDS / 60:.0f} min; {self._room()}"
                )

    def _room(self) -> str:
        import ray

        staff, resources = self._staff, ray.cluster_resources()
        needed = f"{counted(staff.cpus, 'core')}"
        if staff.gpus:
            needed += f" and {staff.gpus:g} GPU"
        return (
            f"each needs {needed}; the cluster has {counted(int(resources.get('CPU', 0)), 'core')} "
            f"and {resources.get('GPU', 0):g} GPU"
        )


@dataclass(frozen=True, slots=True)
class _Share:
    """The workers of one of several runs side by side."""

    engine: RayEngine
    number: int
    of: int

    def executor(
        self, planned: PlannedRun, say: Callable[[str], None], interrupt: Interrupt
    ) -> RayExecutor:
        """See `runner.engine.Engine`."""
        members = self.engine.members(say, interrupt)
        own = self.engine.share(self.number, self.of, members)
        return RayExecutor(planned, own, say, interrupt)


@contextmanager
def _same_handler(number: int) -> Iterator[None]:
    """Restores the handler of a signal. That of `ray.init` for SIGTERM exits at once."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


def _end_actors(members: Sequence[Member]) -> None:
    """Ends workers."""
    import ray
    from ray.exceptions import RayError

    for member in members:
        with suppress(RayError):
            ray.kill(member.actor)


def remove_left_over(parent: Path) -> None:
    """Removes Ray's folders that killed commands of this user left over: those whose lock no
    process holds. Young folders are kept, because they may not be locked yet."""
    for folder in parent.glob(f"{_FOLDER}*"):
        with suppress(OSError):
            found = folder.lstat()
            old = time.time() - found.st_mtime > _YOUNG_SECONDS
            if old and found.st_uid == os.getuid() and not is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)
