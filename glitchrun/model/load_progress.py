"""Reports how far loading is, from the loops over weights that transformers would draw as bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging

from glitchrun.events import Stage

Report = Callable[[Stage, int], None]
"""Takes the present stage of loading and the number of its items that are finished."""


def ignore(stage: Stage, done: int) -> None:
    """Reports nothing."""


@contextmanager
def reported(report: Report, name: str) -> Iterator[None]:
    """Reports every loop of transformers over weights inside a `with` block as stage `name`."""

    def counted(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args:  # a bar without a loop, such as that of a download
            return factory(*args, **kwargs)
        return factory(_counting(args[0], report, name), *args[1:], **kwargs)

    report(Stage(name, None, unit=""), 0)
    hook = transformers_logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)


def _counting(items: Any, report: Report, name: str) -> Iterator[Any]:
    stage = Stage(name, len(items) if hasattr(items, "__len__") else None, unit="tensors")
    for done, item in enumerate(items):
        report(stage, done)
        yield item
    if stage.total:
        report(stage, stage.total)
