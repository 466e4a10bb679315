"""Workers in a Ray cluster: starts them, and checks that they can be used.

1. `RayEngine` connects to the cluster when the first run needs its model, and starts `workers`
   actors. On this machine the cluster is its own, on loopback, and ends with the command.
2. Every worker must have this glitchrun, torch and transformers, and the same model files.
3. Each run gets a share of the workers, in which `runner/ray_executor.py` executes its steps.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from glitchrun.errors import PreflightError, require
from glitchrun.plan.build import PlannedRun
from glitchrun.plan.workers import Staff
from glitchrun.report.formatting import counted
from glitchrun.runner.ray_executor import Member, RayExecutor, answer_of
from glitchrun.runner.ray_messages import about_here, mismatch
from glitchrun.runner.signals import Interrupt

_STORE_BYTES = 128 << 20
"""Shared memory of Ray's object store on this machine; what workers exchange is a few kilobytes."""
_START_SECONDS = 60.0
"""Seconds to wait for all workers before a step begins with those that are there."""
_MOST_SECONDS = 600.0
"""Seconds to wait for the first worker; a cluster may have to start a machine for it."""
_RETRY_SECONDS = 1.0
_LONG_FOLDER = 40
"""Characters; Ray's sockets have names of at most 107 characters, most of them its own."""


def _shell(threads: int) -> Any:
    """The class of the actors. It is defined here, so that it travels by value and can say what a
    worker is where glitchrun is not installed."""

    class Shell:
        """Says what a worker is, and calls `runner.ray_worker.Worker`."""

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
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._connected = False
        """Whether this engine has connected to the cluster; a connection that was there before
        stays."""
        require("ray", extra="ray")

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the workers, and the cluster if it is this command's own."""
        import ray

        if not self._connected:
            for member in self._members:
                ray.kill(member.actor)
            return
        ray.shutdown()
        if self._folder is not None:
            self._folder.cleanup()

    def share(self, number: int, of: int) -> _Share:
        """The engine for one of `of` runs side by side: every `of`-th worker from `number` on."""
        return _Share(self, number, of)

    def members(self, say: Callable[[str], None], interrupt: Interrupt) -> list[Member]:
        """The workers, started by the first call and checked.

        Raises:
            PreflightError: there is no such cluster, no worker starts, or one has other versions.
        """
        with self._lock:
            if not self._members:
                self._connect()
                say(f"workers: starting {self._staff.text}")
                self._members = self._hire()
                self._wait(say, interrupt)
            return self._members

    def _connect(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
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
            self._folder = tempfile.TemporaryDirectory(
                prefix="glitchrun-ray-", dir=parent, ignore_cleanup_errors=True
            )
            options |= {
                "num_cpus": staff.workers * staff.cpus,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "_temp_dir": self._folder.name,
            }
        import ray

        if ray.is_initialized():
            return
        self._connected = True
        try:
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

    def _hire(self) -> list[Member]:
        import ray

        staff = self._staff
        actor = ray.remote(_shell(staff.cpus)).options(
            num_cpus=staff.cpus, num_gpus=staff.gpus, max_restarts=-1, max_task_retries=0
        )
        return [Member(actor.remote()) for _ in range(staff.workers)]

    def _wait(self, say: Callable[[str], None], interrupt: Interrupt) -> None:
        """Waits until the workers are there, and checks what they are."""
        import ray

        began = told = time.monotonic()
        asked = {member.actor.about.remote(): member for member in self._members}
        here = about_here()
        while asked:
            ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=_RETRY_SECONDS)
            for reference in ready:
                member = asked.pop(reference)
                about = answer_of(reference)
                member.host = about["host"]
                if reason := mismatch(here, about):
                    raise PreflightError(f"the worker on {member.host} is refused: {reason}")
            interrupt.check()
            waited = time.monotonic() - began
            there = len(self._members) - len(asked)
            if asked and time.monotonic() - told > 10:
                told = time.monotonic()
                say(f"workers: {there} of {len(self._members)} started; {self._room()}")
            if asked and there and waited > _START_SECONDS:
                say(f"workers: beginning with {there} of {len(self._members)}")
                return
            if asked and waited > _MOST_SECONDS:
                raise PreflightError(
                    f"no worker has started in {_MOST_SECONDS / 60:.0f} min; {self._room()}"
                )

    def _room(self) -> str:
        import ray

        staff, there = self._staff, ray.cluster_resources()
        needed = f"{counted(staff.cpus, 'core')}"
        if staff.gpus:
            needed += f" and {staff.gpus:g} GPU"
        return (
            f"each needs {needed}; the cluster has {counted(int(there.get('CPU', 0)), 'core')} "
            f"and {there.get('GPU', 0):g} GPU"
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
        members = self.engine.members(say, interrupt)[self.number :: self.of]
        return RayExecutor(planned, members, say, interrupt)
