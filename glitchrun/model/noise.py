"""Keep libraries quiet through their own settings, so that stderr holds what glitchrun says."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

# bitsandbytes warns about dtypes on every first use; accelerate about every offloaded module.
_CHATTY = ("bitsandbytes", "accelerate")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and nothing below an error from transformers, bitsandbytes and accelerate.

    What they would have said is checked and raised by glitchrun itself (missing weights, wrong
    shapes); settings are put back on the way out.
    """
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class LoadReport(logging.Handler):
    """What transformers had to say about a checkpoint; it raises without saying it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    @property
    def cause(self) -> str | None:
        """The first exception in the report, in one line, without its traceback."""
        found = re.search(r"^\w+(?:Error|Exception): .*$", self.text, re.MULTILINE)
        return found[0].strip() if found else None

    def emit(self, record: logging.LogRecord) -> None:
        self.text += re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage())


@contextmanager
def load_report() -> Iterator[LoadReport]:
    """Catch the report on missing and ill-shaped weights that loading logs as a warning."""
    logger = logging.getLogger("transformers.modeling_utils")
    level, propagate = logger.level, logger.propagate
    handler = LoadReport()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
