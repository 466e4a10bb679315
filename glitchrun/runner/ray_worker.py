"""The part of a worker that knows glitchrun: it loads a model, executes steps and helps with them.

Every worker can do both. The one that executes a step (its *leader*) calls the strategy and spreads
what the strategy hands to `Context.spread` over the others (its *helpers*) and itself:

1. Items are taken ahead of the results, and each helper gets up to two of them.
2. While the next result is missing, the leader computes the first item that was not handed out.
3. Results are yielded in the order of the items, whoever computed them.
4. The items of a helper that is lost go back to the front. Ray starts the helper again, and it
   helps once it has loaded the model. One whose memory runs out is left out of the step.

`runner/ray_pool.py` is the part in the process of `apply`. This module is imported in the workers
only.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from glitchrun.boundary import is_out_of_memory
from glitchrun.errors import GlitchrunError, RunError
from glitchrun.events import Stage, Verified
from glitchrun.ledger.record import ModelRecord
from glitchrun.plan.build import PlannedRun, fingerprint_now
from glitchrun.report.formatting import counted
from glitchrun.runner.engine import StepTask
from glitchrun.runner.models import Models
from glitchrun.runner.preparation import Prepared, prepare
from glitchrun.runner.ray_messages import Answer, Failed, NoMemory, Unprepared, mismatch
from glitchrun.strategies.context import Context

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")

_EACH = 2
"""Items that a helper has at a time, so that it does not wait for the leader between two."""
_AHEAD = 4
"""Items that are taken ahead of the results, for each worker."""
_MOST_LOSSES = 5
"""Workers that may be lost on one item; it then probably ends them, for example for its memory."""
_RETRY_SECONDS = 1.0
_WAIT_SECONDS = 0.5


@dataclass(eq=False, slots=True)
class _Helper:
    actor: Any
    name: str
    """Its host, for messages."""
    joining: Any = None
    """The call that prepares it; None while it helps, and while it is not asked."""
    helps: bool = False
    not_before: float = 0.0
    """When it is asked again to join, on the monotonic clock."""
    refused: bool = False
    """Whether it is left out for good."""


class Spread:
    """The workers of a step, as its leader sees them; see the module's docstring."""

    def __init__(
        self,
        helpers: Sequence[tuple[Any, str]],
        join: Callable[[Any], Any],
        about: Mapping[str, str],
        tell: Callable[[Answer], None],
    ) -> None:
        """
        Args:
            helpers: Handles and hosts of the other workers.
            join: Asks a handle to prepare the run; returns the reference of the answer.
            about: What this worker is, which the others must be too.
            tell: Sends a message to the process of `apply`.
        """
        self._helpers = [_Helper(actor, host) for actor, host in helpers]
        self._join = join
        self._about = about
        self._tell = tell
        self._admit()

    @property
    def size(self) -> int:
        """The workers that are not left out, this one included."""
        return 1 + sum(not helper.refused for helper in self._helpers)

    def map(
        self,
        context: Context,
        function: Callable[[Context, _Item], _Found],
        items: Iterable[_Item],
    ) -> Iterator[_Found]:
        """See `Context.spread`."""
        call = _Calls(self, function)
        source, taken, due = iter(items), 0, 0
        try:
            while True:
                while taken - due < _AHEAD * self.size:
                    try:
                        call.waiting.append((taken, next(source)))
                    except StopIteration:
                        break
                    taken += 1
                if due == taken:
                    return
                self._admit()
                call.hand_out()
                call.collect(0)
                if due not in call.done and call.waiting:
                    index, item = call.waiting.popleft()
                    call.done[index] = function(context, item)
                while due in call.done:
                    yield call.done.pop(due)
                    due += 1
                if due < taken and not call.waiting and due not in call.done:
                    call.collect(_WAIT_SECONDS)
        finally:
            call.abandon()

    def lost(self, helper: _Helper) -> None:
        """Marks a helper that no longer answers as lost; Ray starts it again."""
        if helper.refused:
            return
        if helper.helps:
            self._tell(("said", f"lost the worker on {helper.name}; its share is done again"))
        helper.helps, helper.joining = False, None
        helper.not_before = time.monotonic() + _RETRY_SECONDS
        self._tell(("staff", self.present))

    @property
    def present(self) -> int:
        """The workers that work at present, this one included."""
        return 1 + sum(helper.helps for helper in self._helpers)

    @property
    def free(self) -> list[_Helper]:
        """The helpers that work."""
        return [helper for helper in self._helpers if helper.helps]

    def _admit(self) -> None:
        """Asks helpers to join, and takes those that have."""
        now = time.monotonic()
        for helper in self._helpers:
            if helper.helps or helper.refused or now < helper.not_before:
                continue
            if helper.joining is None:
                helper.joining = self._join(helper.actor)
            elif ray.wait([helper.joining], timeout=0)[0]:
                self._welcome(helper)

    def _welcome(self, helper: _Helper) -> None:
        try:
            answer = ray.get(helper.joining)
        except RayTaskError:
            raise
        except RayError:
            self.lost(helper)
            return
        helper.joining = None
        reason = ""
        if isinstance(answer, Failed):
            reason = answer.message
        else:
            helper.name = answer["host"]
            reason = mismatch(self._about, answer)
        if reason:
            self.leave_out(helper, reason)
        else:
            helper.helps = True
            self._tell(("staff", self.present))

    def leave_out(self, helper: _Helper, reason: str) -> None:
        """Excludes a helper that cannot help with this step."""
        helper.helps, helper.refused = False, True
        self._tell(("said", f"the worker on {helper.name} is left out: {reason}"))
        self._tell(("staff", self.present))


class _Calls:
    """The items of one `map`: waiting, with a helper, or done."""

    def __init__(self, spread: Spread, function: Callable[[Context, Any], Any]) -> None:
        self.waiting: deque[tuple[int, Any]] = deque()
        self.done: dict[int, Any] = {}
        self._spread = spread
        self._function = function
        self._running: dict[Any, tuple[_Helper, int, Any]] = {}
        self._losses: Counter[int] = Counter()

    def hand_out(self) -> None:
        """Gives each helper as many items as it may have."""
        load = Counter(id(helper) for helper, _, _ in self._running.values())
        for _ in range(_EACH):
            for helper in self._spread.free:
                if self.waiting and load[id(helper)] < _EACH:
                    index, item = self.waiting.popleft()
                    payload = pickle.dumps((self._function, item))
                    reference = helper.actor.call.remote("work", payload)
                    self._running[reference] = helper, index, item
                    load[id(helper)] += 1

    def collect(self, seconds: float) -> None:
        """Takes the finished results, after waiting up to `seconds` for the first of them."""
        if not self._running:
            time.sleep(seconds)
            return
        ready, _ = ray.wait([*self._running], num_returns=1, timeout=seconds)
        if len(self._running) > 1:
            ready, _ = ray.wait([*self._running], num_returns=len(self._running), timeout=0)
        for reference in ready:
            if reference not in self._running:  # taken back with another one of its helper
                continue
            helper, index, _ = self._running[reference]
            try:
                answer = ray.get(reference)
            except RayTaskError:
                raise
            except RayError:
                self._count_loss(helper)
                self._take_back(helper)
                self._spread.lost(helper)
                continue
            if not isinstance(answer, Failed):
                self.done[index] = answer
                del self._running[reference]
            elif answer.kind == Unprepared.__name__:
                self._take_back(helper)
                self._spread.lost(helper)
            elif answer.kind == NoMemory.__name__:
                self._take_back(helper)
                self._spread.leave_out(helper, answer.message)
            else:
                raise answer.error(f"worker on {helper.name}: ")

    def _count_loss(self, helper: _Helper) -> None:
        """Counts the loss of a helper on the item that it worked on: the first one that it has."""
        index = next(index for who, index, _ in self._running.values() if who is helper)
        self._losses[index] += 1
        if self._losses[index] >= _MOST_LOSSES:
            raise RunError(
                f"{counted(_MOST_LOSSES, 'worker')} ended one after the other on the same tokens, "
                f"the last on {helper.name}; look for the reason there (memory?), or set a smaller "
                "batch_size"
            )

    def _take_back(self, helper: _Helper) -> None:
        """Puts the items of a helper back to the front."""
        theirs = {key: item for key, (who, *item) in self._running.items() if who is helper}
        for reference in theirs:
            del self._running[reference]
        back = [(index, item) for index, item in theirs.values()]
        self.waiting = deque(sorted([*self.waiting, *back], key=lambda pair: pair[0]))

    def abandon(self) -> None:
        """Withdraws what helpers have not begun."""
        for reference in self._running:
            ray.cancel(reference)


class Worker:
    """Keeps the model of a run, and executes steps or parts of them."""

    def __init__(self, about: Mapping[str, str]) -> None:
        """`about` says what this worker is: its host and versions."""
        self._about = about
        self._outbox: list[Answer] = []
        self._models = Models(lambda text: self._outbox.append(("said", text)))
        self._prepared: Prepared | None = None
        self._run: bytes = b""
        self._context: Context | None = None
        self._events: Iterator[Any] = iter(())

    def call(self, method: str, payload: bytes, helpers: Sequence[tuple[Any, str]]) -> Any:
        """Calls a method with pickled arguments. Returns `Failed` instead of a GlitchrunError, and
        when memory runs out."""
        try:
            arguments: tuple[Any, ...] = pickle.loads(payload) if payload else ()  # nosec B301 # our leader's
            if method == "lead":
                return self._lead(arguments[0], helpers)
            return getattr(self, f"_{method}")(*arguments)
        except GlitchrunError as error:
            return Failed.of(error)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            return Failed.of(NoMemory())

    def _fingerprint(self, planned: PlannedRun) -> str:
        """The fingerprint of the model's files as this worker finds them."""
        return fingerprint_now(planned.cell.spec.model)

    def _prepare(self, run: bytes, chosen: Any = None) -> dict[str, Any]:
        """Loads the model of a run, unless it is loaded; `chosen` is the leader's arithmetic."""
        if run != self._run or self._prepared is None:
            # Nothing may keep the former model in memory while the next one is loaded.
            self._prepared, self._context, self._events, self._run = None, None, iter(()), b""
            planned: PlannedRun = pickle.loads(run)  # nosec B301 # our leader's
            self._prepared = prepare(planned, self._models, self._say)
            self._run = run
            self._context = replace(self._prepared.context, tools={})
        backend: Any = self._prepared.context.backend
        if chosen is not None and hasattr(backend, "chosen"):
            backend.chosen = chosen
        said, self._outbox = self._outbox, []
        return {**self._about, "said": [text for _, text in said]}

    def _lead(self, task: StepTask, helpers: Sequence[tuple[Any, str]]) -> None:
        """Begins a step; `next` then returns its events."""
        prepared, workers = self._loaded(), None
        self._close()
        if helpers:
            chosen = getattr(prepared.context.backend, "chosen", None)
            payload = pickle.dumps((self._run, chosen))
            workers = Spread(
                helpers,
                lambda actor: actor.call.remote("prepare", payload),
                self._about,
                self._outbox.append,
            )
        shared = replace(prepared.context, workers=workers) if workers else prepared.context
        self._events = replace(prepared, context=shared).events(task, self)

    def _next(self) -> list[Answer]:
        """What the step yields up to its next event. The last item is the event, or the end."""
        event = next(self._events, None)
        self._outbox.append(("end", None) if event is None else ("event", event))
        taken, self._outbox = self._outbox, []
        return taken

    def _work(self, function: Callable[[Context, Any], Any], item: Any) -> Any:
        """Computes an item of another worker's step."""
        if self._context is None:
            raise Unprepared
        return function(self._context, item)

    def _measured(self, with_categories: bool) -> ModelRecord:
        return self._loaded().measured(with_categories=with_categories)

    def _indicators(self, verified: Sequence[Verified]) -> Mapping[str, Any] | None:
        return self._loaded().indicators(verified)

    def _check(self) -> None:
        self._loaded().check()

    def _close(self) -> None:
        """Ends a step that was given up, and withdraws what its helpers have not begun."""
        if isinstance(self._events, Generator):
            self._events.close()
        self._events = iter(())

    def _loaded(self) -> Prepared:
        if self._prepared is None:
            raise Unprepared
        return self._prepared

    def _say(self, text: str) -> None:
        self._outbox.append(("said", text))

    def begin(self, stage: Stage) -> None:
        """Passes on that a stage of the step begins; see `runner.engine.Watch`."""
        self._outbox.append(("stage", stage))

    def staff(self, workers: int) -> None:
        """Passes on how many workers share the step; see `runner.engine.Watch`."""
        self._outbox.append(("staff", workers))
