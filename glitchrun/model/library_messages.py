"""Messages of transformers and related libraries, silenced or turned into glitchrun's errors, and
the progress of their loops."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import modeling_gguf_pytorch_utils as gguf_loading
from transformers.utils import logging as transformers_logging

from glitchrun.boundary import first_line, install_command
from glitchrun.checkpoint.headers import Header
from glitchrun.errors import ModelUnavailable, PreflightError
from glitchrun.events import Stage
from glitchrun.model.placement import beyond_max_memory, out_of_memory
from glitchrun.spec.types import ModelSpec

log = logging.getLogger(__name__)

# bitsandbytes warns about dtypes at every first use; accelerate about every offloaded module.
_CHATTY = ("bitsandbytes", "accelerate")
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "not enough memory")
METHOD_PACKAGES = {
    "aqlm": "'aqlm[cpu,gpu]'",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "kernels",
    "fbgemm_fp8": "fbgemm-gpu",
    "fouroversix": "fouroversix --no-build-isolation",
    "fp_quant": "fp_quant qutlass",
    "gptq": "optimum gptqmodel",
    "higgs": "flute-kernel fast_hadamard_transform",
    "hqq": "hqq",
    "metal": "kernels",
    "mxfp4": "kernels triton",
    "nvfp4": "kernels",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "sinq": "sinq",
    "spqr": "'spqr_quant[gpu]'",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""pip's names of the packages that a quantization method needs. transformers names them one at a
time, or prints a page of instructions."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence progress bars and everything below an error; restores the settings at the end.

    glitchrun itself checks what the libraries warn about, such as missing weights and wrong shapes.
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
    """Captures the report on a checkpoint that transformers logs before it raises a general
    error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    @property
    def cause(self) -> str | None:
        """The first exception in the report, in one line, without its traceback."""
        found = re.search(r"^\w+(?:Error|Exception): .*$", self.text, re.MULTILINE)
        return found[0].strip() if found else None

    def emit(self, record: logging.LogRecord) -> None:
        """Add a message without its colors."""
        self.text += re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage())


@contextmanager
def load_report() -> Iterator[LoadReport]:
    """Capture the report on missing and misshapen weights that transformers logs as a warning."""
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


def load_failure(
    spec: ModelSpec, header: Header, device: torch.device, report: LoadReport, error: Exception
) -> PreflightError:
    """The error to raise for an exception of `from_pretrained`."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in text for sign in _OUT_OF_MEMORY for text in (report.text, str(error))
    ):
        return out_of_memory(spec, device)
    if spec.max_memory and "disk" in str(error):
        return beyond_max_memory(spec)
    detail = (report.cause or " ".join(first_line(error).split())).rstrip(".")
    return ModelUnavailable(
        f"model.path {spec.path!r}: cannot be loaded: {detail}.{remedy(header, error)}"
    )


def remedy(header: Header, error: Exception) -> str:
    """The remedy to append to the message of another library, beginning with a space."""
    if isinstance(error, ImportError):
        packages = METHOD_PACKAGES.get(header.prequantized or "")
        command = f"pip install {packages}" if packages else install_command(error)
        if command:
            return f" Install the missing package with: {command}"
    if header.prequantized:
        return (
            f" The weights are quantized on disk ({header.prequantized}); give the unquantized "
            "checkpoint with model.quantization: int4 or int8, or run on a device that the method "
            "supports"
        )
    return " Check that config.json and weights belong together, and that no file is cut short"


def check_complete(info: Mapping[str, Any], source: str, module: Any, header: Header) -> None:
    """Refuse weights that transformers would initialize at random; warn about unused tensors.

    `info` is the loading information of `from_pretrained`. Raises ModelUnavailable.
    """
    if info["mismatched_keys"]:
        name, stored, wanted = min(info["mismatched_keys"])
        raise ModelUnavailable(
            f"model.path {source!r}: {name} has shape {tuple(stored)}, the model that config.json "
            f"describes wants {tuple(wanted)} ({len(info['mismatched_keys'])} such weights); "
            "config.json and weights do not belong together"
        )
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        if names == [_head_name(module)]:
            raise ModelUnavailable(
                f"model.path {source!r}: the output matrix {names[0]} is missing, and config.json "
                "does not tie it to the input embedding. Set tie_word_embeddings: true there if "
                "this model has one matrix for both; otherwise the weights are incomplete"
            )
        raise ModelUnavailable(
            f"model.path {source!r}: {len(names)} weights of the model that config.json describes "
            f"are missing, such as {names[0]}; {_why_incomplete(header)}"
        )
    if info["unexpected_keys"]:
        names = sorted(info["unexpected_keys"])
        log.warning("%s: %d tensors are not used, such as %s", source, len(names), names[0])


def _why_incomplete(header: Header) -> str:
    if header.composite:
        return (
            f"the language part of {header.architecture} could not be assembled from them: they "
            "are incomplete, or transformers loads this family only as a whole"
        )
    return "fetch the checkpoint again, or restore the config.json that belongs to it"


def _head_name(module: Any) -> str | None:
    """The name of the output matrix among the module's parameters."""
    head = module.get_output_embeddings()
    names = (name for name, part in module.named_modules() if part is head)
    return next((f"{name}.weight" for name in names), None)


_WRITING = "Writing model shards"
"""transformers' description of its loop over files."""

Report = Callable[[Stage, int], None]
"""Takes the present stage of loading and the number of its items that are finished."""


def no_report(stage: Stage, done: int) -> None:
    """Reports nothing."""


@contextmanager
def reported_loops(report: Report, name: str) -> Iterator[None]:
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
