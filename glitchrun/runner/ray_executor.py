"""Executes the steps of a run in workers of Ray, and takes their facts one by one.

One worker leads a step (`runner/ray_worker.py`). The facts of all workers arrive here, in the
process that owns the ledger, in a fixed order. If the leader is lost, the next worker that answers
continues from the ledger, as after an interruption.
"""

from __future__ import annotations

import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glitchrun.errors import GlitchrunError, PreflightError, RunError
from glitchrun.events import Event, Measured, Verified
from glitchrun.ledger.record import ModelRecord
from glitchrun.plan.build import PlannedRun
from glitchrun.report.formatting import counted
from glitchrun.runner.engine import StepTask, Watch
from glitchrun.runner.ray_messages import Failed, Unprepared, about_here, mismatch
from glitchrun.runner.signals import Interrupt
from glitchrun.spec.types import Tracking

_MOST_LOSSES = 5
"""Leaders in a row that are lost without a new fact; the run then fails."""
_MOST_SECONDS = 1800.0
"""Seconds to wait for any worker to answer. One that helps answers between two batches."""
_SAY_SECONDS = 10.0
_RETRY_SECONDS = 1.0


class WorkerLost(Exception):
    """A worker no longer answers."""


@dataclass(eq=False, slots=True)
class Member:
    """A worker."""

    actor: Any
    host: str = ""
    """Empty until it has said what it is."""


class RayExecutor:
    """Executes the steps of one run in workers; see `runner.engine.Executor`."""

    def __init__(
        self,
        planned: PlannedRun,
        members: Sequence[Member],
        say: Callable[[str], None],
        interrupt: Interrupt,
    ) -> None:
        self._planned = planned
        self._members = list(members)
        self._say = say
        self._interrupt = interrupt
        self._run = pickle.dumps(portable(planned))
        self._losses = 0
        """Leaders that were lost since the last fact."""
        self._leader = self._members[-1]  # `_choose` begins with the one after it
        self._choose()
        if planned.fingerprint:
            self._check_models()
        payload = pickle.dumps((self._run,))
        for member in self._others():  # they load the model while the leader does
            submit(member.actor.call, "prepare", payload)
        self._prepare()

    # Steps ------------------------------------------------------------------------------------

    def events(self, task: StepTask, watch: Watch) -> Iterator[Event]:
        """See `runner.engine.Executor`."""
        metrics: list[Measured] = []
        while True:
            try:
                for event in self._events(task, watch):
                    self._losses = 0
                    if isinstance(event, Measured):
                        if event in metrics:  # from a leader that was lost after it
                            continue
                        metrics.append(event)
                    yield event
                return
            except WorkerLost:
                self._replace()

    def _events(self, task: StepTask, watch: Watch) -> Iterator[Event]:
        """The events of a step, from the end of what is stored."""
        stored = [*task.history()]
        sent = (replace(task, history=_Stored(stored)),)
        others = [(member.actor, member.host) for member in self._others()]
        watch.staff(1)
        self._ask("lead", pickle.dumps(sent), others)
        answer = submit(self._leader.actor.call, "next", b"")
        while True:
            messages = _checked(self._answer(answer))
            kind, value = messages[-1]
            if kind == "event":  # the leader continues while this event is stored
                answer = submit(self._leader.actor.call, "next", b"")
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

    def _others(self) -> list[Member]:
        return [member for member in self._members if member is not self._leader]

    def _of_any(self, method: str, *arguments: Any) -> Any:
        """Asks the leader, or another one if it is lost."""
        while True:
            try:
                answer = self._ask(method, pickle.dumps(arguments))
                self._losses = 0
                return answer
            except WorkerLost:
                self._replace()

    def _ask(self, method: str, payload: bytes, helpers: Sequence[Any] = ()) -> Any:
        where = self._leader.host or "a worker"
        answer = self._answer(submit(self._leader.actor.call, method, payload, helpers))
        return _checked(answer, "" if where == socket.gethostname() else f"worker on {where}: ")

    def _answer(self, reference: Any) -> Any:
        return answer_of(reference, self._interrupt.check_second)

    def _check_models(self) -> None:
        """Checks that the workers that have started have the planned model."""
        payload = pickle.dumps((portable(self._planned),))
        started = [member for member in self._members if member.host]
        asked = [submit(member.actor.call, "fingerprint", payload) for member in started]
        path = self._planned.cell.spec.model.path
        for member, reference in zip(started, asked, strict=True):
            with suppress(WorkerLost):  # it is checked again when it is back
                answer = self._answer(reference)
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
        while True:
            try:
                about = self._ask("prepare", pickle.dumps((self._run,)))
            except WorkerLost:
                self._replace(prepare=False)
                continue
            self._leader.host = about["host"]
            for text in about["said"]:
                self._say(text)
            if reason := mismatch(about_here(), about):
                raise PreflightError(f"the worker on {about['host']} is refused: {reason}")
            return

    def _replace(self, *, prepare: bool = True) -> None:
        """Chooses another leader after one was lost."""
        self._interrupt.check()
        host = self._leader.host
        self._losses += 1
        if self._losses >= _MOST_LOSSES:
            raise RunError(
                f"{self._losses} workers ended one after the other, the last on {host}, without a "
                "result; look for the reason there (memory?)"
            )
        self._say(f"lost the worker on {host}; another one continues")
        self._choose()
        if prepare:
            self._prepare()

    def _choose(self) -> None:
        """Makes the next worker that answers the leader. One that Ray cannot start does not.

        Raises:
            RunError: none answers.
            Stopped: a signal came while waiting.
        """
        place = self._members.index(self._leader) + 1
        order = self._members[place:] + self._members[:place]
        began, told = time.monotonic(), False
        asked: dict[Any, Member] = {}
        while not (answering := _answering(order, asked)):
            self._interrupt.check()
            waited = time.monotonic() - began
            if waited > _MOST_SECONDS:
                raise RunError(
                    f"no worker has answered for {_MOST_SECONDS / 60:.0f} min; look at the "
                    "cluster's hosts. What was measured is stored; apply again to continue"
                )
            if waited > _SAY_SECONDS and not told:
                told = True
                self._say("waiting for a worker: none answers, and Ray starts them again")
        self._leader = answering[0]


def _answering(order: Sequence[Member], asked: dict[Any, Member]) -> list[Member]:
    """The workers that answer within a second, in their order.

    Args:
        order: All workers.
        asked: The questions that have no answer yet, and whom they are for; is kept up to date.

    Raises:
        RunError: Ray has ended.
    """
    import ray

    if not ray.is_initialized():
        raise RunError("the connection to the Ray cluster has ended; apply again to continue")
    waiting = [*asked.values()]
    for member in order:
        if member not in waiting:
            with suppress(WorkerLost):
                asked[submit(member.actor.about)] = member
    ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=_RETRY_SECONDS)
    answering = []
    for reference in ready:
        member = asked.pop(reference)
        with suppress(WorkerLost):
            member.host = answer_of(reference)["host"]
            answering.append(member)
    if not answering and not asked:  # all of them were lost: Ray starts them again
        time.sleep(_RETRY_SECONDS)
    return sorted(answering, key=order.index)


class _Stored:
    """The stored batches of a step, as a function that can be pickled."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __call__(self) -> Sequence[Any]:
        return self._batches


def submit(method: Any, *arguments: Any) -> Any:
    """Calls a method of a worker; returns the reference of the answer.

    Raises:
        WorkerLost: the call cannot be sent.
    """
    from ray.exceptions import RayError

    try:
        return method.remote(*arguments)
    except RayError as error:
        raise WorkerLost from error


def answer_of(reference: Any, check: Callable[[], None] = lambda: None) -> Any:
    """The answer of a worker. While it is missing, `check` is called every second.

    Raises:
        WorkerLost: it no longer answers.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        while not ray.wait([reference], timeout=_RETRY_SECONDS)[0]:
            check()
        return ray.get(reference)
    except RayTaskError:  # a defect, with the worker's traceback
        raise
    except (RayError, SystemExit) as error:  # it exits if Ray was shut down in another thread
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
