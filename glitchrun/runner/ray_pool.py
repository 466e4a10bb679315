"""Workers in a Ray cluster: starts them, checks them, and has them execute the steps of runs.

1. `RayEngine` connects to the cluster when the first run needs its model, and starts `workers`
   actors. On this machine the cluster is its own, on loopback, and ends with the command.
2. Every worker must have this glitchrun, torch and transformers, and the same model files.
3. `RayExecutor` chooses one worker as the leader of each step, and takes its events one by one: the
   facts of all workers arrive here, in the process that owns the ledger, in a fixed order.
4. If the leader is lost, another one continues from the ledger, as after an interruption.

`runner/ray_worker.py` is the other end.
"""

from __future__ import annotations

import os
import pickle
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from glitchrun.errors import GlitchrunError, PreflightError, RunError, require
from glitchrun.events import Event, Verified
from glitchrun.ledger.record import ModelRecord
from glitchrun.plan.build import PlannedRun
from glitchrun.plan.workers import Staff
from glitchrun.report.formatting import counted
from glitchrun.runner.engine import StepTask, Watch
from glitchrun.runner.ray_messages import Failed, Unprepared, mismatch
from glitchrun.runner.signals import Interrupt
from glitchrun.spec.types import Tracking

_STORE_BYTES = 128 << 20
"""Shared memory of Ray's object store on this machine; what workers exchange is a few kilobytes."""
_START_SECONDS = 60.0
"""Seconds to wait for all workers before a step begins with those that are there."""
_MOST_SECONDS = 600.0
"""Seconds to wait for the first worker; a cluster may have to start a machine for it."""
_MOST_LOSSES = 8
"""Leaders that a step may lose without a new fact."""
_RETRY_SECONDS = 1.0
_LONG_FOLDER = 40
"""Characters; Ray's sockets have names of at most 107 characters, most of them its own."""


class WorkerLost(Exception):
    """A worker no longer answers."""


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
            import socket
            from importlib.metadata import PackageNotFoundError, version

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


@dataclass(eq=False, slots=True)
class _Member:
    """A worker."""

    actor: Any
    host: str = ""
    """Empty until it has said what it is."""


class RayEngine:
    """The engine that executes runs in workers. Use as a context manager."""

    def __init__(self, staff: Staff) -> None:
        """`staff` says how many workers there are, where, and with what."""
        self._staff = staff
        self._lock = threading.Lock()
        self._members: list[_Member] = []
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

    def members(self, say: Callable[[str], None], interrupt: Interrupt) -> list[_Member]:
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
            parent = parent if len(parent) <= _LONG_FOLDER else "/tmp"
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

    def _hire(self) -> list[_Member]:
        import ray

        staff = self._staff
        actor = ray.remote(_shell(staff.cpus)).options(
            num_cpus=staff.cpus, num_gpus=staff.gpus, max_restarts=-1, max_task_retries=0
        )
        return [_Member(actor.remote()) for _ in range(staff.workers)]

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
                about = _get(reference)
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

        staff, there = self._staff, ray.cluster_resources()  # type: ignore[no-untyped-call]
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


class RayExecutor:
    """Executes the steps of one run in workers; see `runner.engine.Executor`."""

    def __init__(
        self,
        planned: PlannedRun,
        members: Sequence[_Member],
        say: Callable[[str], None],
        interrupt: Interrupt,
    ) -> None:
        self._planned = planned
        self._members = list(members)
        self._say = say
        self._interrupt = interrupt
        self._run = pickle.dumps(portable(planned))
        self._leader = self._members[0]
        if planned.fingerprint:
            self._check_models()
        payload = pickle.dumps((self._run,))
        for member in self._others():  # they load the model while the leader does
            member.actor.call.remote("prepare", payload)
        self._prepare()

    # Steps ------------------------------------------------------------------------------------

    def events(self, task: StepTask, watch: Watch) -> Iterator[Event]:
        """See `runner.engine.Executor`."""
        losses = 0
        while True:
            try:
                for event in self._events(task, watch):
                    losses = 0
                    yield event
                return
            except WorkerLost:
                losses += 1
                self._replace(losses)

    def _events(self, task: StepTask, watch: Watch) -> Iterator[Event]:
        """The events of a step, from the end of what is stored."""
        stored = [*task.history()]
        sent = (replace(task, history=_Stored(stored)),)
        others = [(member.actor, member.host) for member in self._others()]
        watch.staff(1)
        self._ask("lead", pickle.dumps(sent), others)
        answer = self._leader.actor.call.remote("next", b"")
        while True:
            messages = _checked(_get(answer))
            kind, value = messages[-1]
            if kind == "event":  # the leader goes on while this event is stored
                answer = self._leader.actor.call.remote("next", b"")
            for name, content in messages:
                if name == "said":
                    self._say(content)
                elif name == "stage":
                    watch.begin(content)
                elif name == "staff":
                    watch.staff(content)
            if kind == "end":
                return
            yield value

    # The model --------------------------------------------------------------------------------

    def measured(self, *, with_categories: bool) -> ModelRecord:
        """See `runner.engine.Executor`."""
        record: ModelRecord = self._of_any("measured", with_categories)
        many = counted(len(self._members), "worker")
        return replace(record, engine=f"{record.engine}; Ray: {many} on {self._hosts()}")

    def indicators(self, verified: Sequence[Verified]) -> Mapping[str, Any] | None:
        """See `runner.engine.Executor`."""
        found: Mapping[str, Any] | None = self._of_any("indicators", list(verified))
        return found

    def check(self) -> None:
        """See `runner.engine.Executor`."""
        self._of_any("check")

    def _hosts(self) -> str:
        return ", ".join(dict.fromkeys(member.host for member in self._members if member.host))

    # Workers ----------------------------------------------------------------------------------

    def _others(self) -> list[_Member]:
        return [member for member in self._members if member is not self._leader]

    def _of_any(self, method: str, *arguments: Any) -> Any:
        """Asks the leader, or another one if it is lost."""
        losses = 0
        while True:
            try:
                return self._ask(method, pickle.dumps(arguments))
            except WorkerLost:
                losses += 1
                self._replace(losses)

    def _ask(self, method: str, payload: bytes, helpers: Sequence[Any] = ()) -> Any:
        where = self._leader.host or "a worker"
        answer = _get(self._leader.actor.call.remote(method, payload, helpers))
        return _checked(answer, "" if where == socket.gethostname() else f"worker on {where}: ")

    def _check_models(self) -> None:
        """Checks that the workers that are there have the model that was planned with."""
        payload = pickle.dumps((portable(self._planned),))
        there = [member for member in self._members if member.host]
        asked = [member.actor.call.remote("fingerprint", payload) for member in there]
        path = self._planned.cell.spec.model.path
        for member, reference in zip(there, asked, strict=True):
            with suppress(WorkerLost):  # it is checked again when it is back
                answer = _get(reference)
                if isinstance(answer, Failed):
                    raise answer.error(f"the worker on {member.host} is refused: ")
                if answer != self._planned.fingerprint:
                    raise PreflightError(
                        f"the worker on {member.host} is refused: its files of model.path {path!r} "
                        "are not those of this machine; copy them there, or use a path that all "
                        "workers share"
                    )

    def _prepare(self) -> None:
        """Has the leader load the model; another one leads if it is lost."""
        losses = 0
        while True:
            try:
                about = self._ask("prepare", pickle.dumps((self._run,)))
            except WorkerLost:
                losses += 1
                self._replace(losses, prepare=False)
                continue
            self._leader.host = about["host"]
            for text in about["said"]:
                self._say(text)
            if reason := mismatch(about_here(), about):
                raise PreflightError(f"the worker on {about['host']} is refused: {reason}")
            return

    def _replace(self, losses: int, *, prepare: bool = True) -> None:
        """Chooses the next worker as the leader, after `losses` lost ones."""
        self._interrupt.check()
        lost = self._leader
        if losses > _MOST_LOSSES:
            raise RunError(
                f"{losses} workers ended one after the other, the last on {lost.host}, without a "
                "result; look for the reason there (memory?)"
            )
        if losses >= len(self._members):  # all of them were lost: Ray starts them again
            time.sleep(_RETRY_SECONDS)
        place = (self._members.index(lost) + 1) % len(self._members)
        self._leader = self._members[place]
        self._say(f"lost the worker on {lost.host or 'an unknown host'}; another one continues")
        if prepare:
            self._prepare()


class _Stored:
    """The stored batches of a step, as a function that can be pickled."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __call__(self) -> Sequence[Any]:
        return self._batches


def _get(reference: Any) -> Any:
    """The answer of a worker.

    Raises:
        WorkerLost: it no longer answers.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError:  # a defect, with the worker's traceback
        raise
    except RayError as error:
        raise WorkerLost from error


def _checked(answer: Any, where: str = "") -> Any:
    """An answer that is not a failure.

    Raises:
        WorkerLost: the worker was lost, and has started again.
        GlitchrunError: the worker has failed.
    """
    if not isinstance(answer, Failed):
        return answer
    if answer.kind == Unprepared.__name__:
        raise WorkerLost
    error: GlitchrunError = answer.error(where)
    raise error


def about_here() -> dict[str, str]:
    """The versions of this process, as a worker says them."""
    found = {"host": socket.gethostname()}
    for name in ("glitchrun", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def portable(planned: PlannedRun) -> PlannedRun:
    """A run as workers get it: an absolute path of the model, and nothing of the tracking store.
    Ray gives each worker its own GPUs, so a number of the spec's is left out."""
    spec = planned.cell.spec
    path, device = Path(spec.model.path), spec.model.device
    model = replace(
        spec.model,
        path=str(path.absolute()) if path.exists() else spec.model.path,
        device=device.partition(":")[0],
    )
    spec = replace(spec, model=model, tracking=Tracking(), document={})
    return replace(planned, cell=replace(planned.cell, spec=spec))
