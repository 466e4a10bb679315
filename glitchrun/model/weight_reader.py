"""Reads the weights of a streamed model unit by unit, in a thread of its own.

While the caller computes with one unit, the next ones are read, as far as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Condition, Lock, Thread

import torch
from torch import Tensor

from glitchrun.checkpoint.stream_units import TensorPlace, Unit
from glitchrun.errors import ModelUnavailable, RunError

Convert = Callable[[Unit, dict[str, Tensor]], None]
"""Gives the stored tensors of a unit the dtype of the weights, in place."""
_Read = tuple[dict[str, Tensor], list[Tensor]]
"""Tensors, and the memory of those that were not converted."""


class _Buffers:
    """Memory of tensors that are no longer used, for later tensors of the same size.

    Fresh memory costs page faults, which for 50 MB take four times as long as reading them from the
    file cache. Idle memory is freed before memory of another size is allocated, so that both
    together stay within the capacity of the reader.
    """

    def __init__(self) -> None:
        self._idle: dict[int, list[Tensor]] = {}
        self._lock = Lock()

    def take(self, nbytes: int) -> Tensor:
        """Returns bytes `(nbytes,)` with undefined contents."""
        with self._lock:
            if idle := self._idle.get(nbytes):
                return idle.pop()
            self._idle.clear()
        return torch.empty(nbytes, dtype=torch.uint8)

    def give(self, buffers: Iterable[Tensor]) -> None:
        with self._lock:
            for buffer in buffers:
                self._idle.setdefault(len(buffer), []).append(buffer)


class Reader:
    """Reads units in order, in a thread of its own, at most `capacity` bytes ahead and in use."""

    def __init__(
        self, units: tuple[Unit, ...], capacity: int, width: int, convert: Convert
    ) -> None:
        self._units = units
        self._room = capacity
        self._width = width
        self._convert = convert
        self._changed = Condition()
        self._closed = False
        self._queue: SimpleQueue[_Read | BaseException] = SimpleQueue()
        # Only what passes use is used up before the next unit is asked for.
        self._reuses = units[0].kind in ("layer", "expert")
        self._buffers = _Buffers()

    def __iter__(self) -> Iterator[tuple[Unit, dict[str, Tensor]]]:
        thread = Thread(target=self._run, name="weights", daemon=True)
        thread.start()
        try:
            for unit in self._units:
                found = self._queue.get()
                if isinstance(found, BaseException):
                    raise found
                tensors, buffers = found
                yield unit, tensors
                tensors.clear()
                if self._reuses:
                    self._buffers.give(buffers)
                del found, tensors, buffers
                self._give(unit.numel * self._width)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify()
            thread.join()

    def _run(self) -> None:
        try:
            for unit in self._units:
                tensors: dict[str, Tensor] = {}
                buffers: list[Tensor] = []
                for name, place in unit.tensors.items():
                    if not self._take(place.held * self._width):
                        return
                    buffers.append(self._buffers.take(place.info.nbytes))
                    tensors[name] = read_tensor(place, buffers[-1])
                self._convert(unit, tensors)
                used = {tensor.data_ptr() for tensor in tensors.values()}
                self._buffers.give(one for one in buffers if one.data_ptr() not in used)
                buffers = [one for one in buffers if one.data_ptr() in used]
                self._queue.put((tensors, buffers))
        except (OSError, RuntimeError, ModelUnavailable) as error:
            self._queue.put(error)
        finally:  # so that the caller never waits for a thread that has ended
            self._queue.put(RunError("the thread that reads the weights ended early"))

    def _take(self, nbytes: int) -> bool:
        """Waits for room and reserves it. Returns False if the reader was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._room >= nbytes)
            self._room -= nbytes
            return not self._closed

    def _give(self, nbytes: int) -> None:
        with self._changed:
            self._room += nbytes
            self._changed.notify()


def read_tensor(place: TensorPlace, buffer: Tensor | None = None) -> Tensor:
    """Reads a tensor `(R, ...)` into a buffer `(N,)` of its bytes, or into memory of its own.

    Raises:
        ModelUnavailable: the file ends before the tensor does, or cannot be read.
    """
    dtype: torch.dtype = getattr(torch, place.info.dtype)
    if buffer is None:
        buffer = torch.empty(place.info.nbytes, dtype=torch.uint8)
    into = memoryview(buffer.numpy())
    try:
        with place.file.open("rb", buffering=0) as file:
            file.seek(place.offset)
            while len(into):
                count = file.readinto(into)
                if not count:
                    raise ModelUnavailable(f"{place.file}: it is shorter than its header says")
                into = into[count:]
    except OSError as error:
        raise ModelUnavailable(f"{place.file}: cannot be read ({error.strerror})") from error
    return buffer.view(dtype).view(place.info.shape)
