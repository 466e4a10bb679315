"""Reports the progress of loading, from the loops over weights that transformers would draw as
bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import modeling_gguf_pytorch_utils as gguf_loading
from transformers.utils import logging as transformers_logging

from glitchrun.events import Stage

_WRITING = "Writing model shards"
"""transformers' description of its loop over files."""

Report = Callable[[Stage, int], None]
"""Takes the present stage of loading and the number of its items that are finished."""


def ignore(stage: Stage, done: int) -> None:
    """Reports nothing."""


@contextmanager
def reported(report: Report, name: str) -> Iterator[None]:
    """Reports every loop of transformers over weights inside a `with` block as stage `name`, and
    unpacking a GGUF file as stage `converting`."""

    def counted(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("desc") == _WRITING:
            report(Stage("saving", None, unit=""), 0)
            return factory(*args, **kwargs)
        if not args:  # a bar without a loop, such as that of a download
            return factory(*args, **kwargs)
        return factory(_counting(args[0], report, name), *args[1:], **kwargs)

    def counted_gguf(items: Any, **_: Any) -> Iterator[Any]:
        return _counting(items, report, "converting")

    hook = transformers_logging.set_tqdm_hook(counted)
    bar = gguf_loading.tqdm  # this module uses tqdm itself, so that the hook does not apply
    gguf_loading.tqdm = counted_gguf
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
        gguf_loading.tqdm = bar


def _counting(items: Any, report: Report, name: str) -> Iterator[Any]:
    stage = Stage(name, len(items), unit="tensors")
    for done, item in enumerate(items):
        report(stage, done)
        yield item
    report(stage, len(items))
