"""Forward passes of prompts through other tools that run models larger than memory.

    python -m benchmarks.support.other_tools accelerate MODEL TOKENS FOLDER
    PYTHON benchmarks/support/other_tools.py airllm MODEL TOKENS FOLDER

Each prompt is one token between 16 and 15 others, and all of them are one batch, which is the best
case for tools that read the model once for each batch. FOLDER takes the weights in the tool's own
form. It prints a line of JSON: seconds, seconds of the processor, bytes that a batch reads, and the
peak of the process in bytes. AirLLM 4.0.0 runs Mixtral with transformers 4.57, not with 5.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Run = Callable[[torch.Tensor], Any]


def accelerate(model: str, folder: str) -> tuple[Run, int]:
    """Disk offload with 15 % of the weights in memory: a gigabyte of 6.7."""
    from transformers import AutoModelForCausalLM

    room = int(0.15 * sum(file.stat().st_size for file in Path(model).glob("*.safetensors")))
    module = AutoModelForCausalLM.from_pretrained(
        model, device_map="auto", max_memory={"cpu": room}, offload_folder=folder, dtype="auto"
    )
    places = {name: place for name, place in module.hf_device_map.items() if place == "disk"}
    read = sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in module.named_parameters()
        if any(not place or name == place or name.startswith(f"{place}.") for place in places)
    )

    def run(ids: torch.Tensor) -> Any:
        return module(input_ids=ids, use_cache=False, logits_to_keep=1).logits

    return run, read


def airllm(model: str, folder: str) -> tuple[Run, int]:
    """AirLLM, which writes a file for each layer and reads each once for each forward pass."""
    from airllm import AutoModel  # type: ignore[import-not-found]
    from airllm.airllm_base import AirLLMBaseModel  # type: ignore[import-not-found]

    AirLLMBaseModel.get_tokenizer = lambda self, *a, **k: None  # prompts are given as ids
    module = AutoModel.from_pretrained(model, device="cpu", layer_shards_saving_path=folder)
    read = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))

    def run(ids: torch.Tensor) -> Any:
        return module(input_ids=ids, use_cache=False, logits_to_keep=1).logits

    return run, read


def main() -> None:
    tool, model, count, folder = sys.argv[1:]
    run, read = {"accelerate": accelerate, "airllm": airllm}[tool](model, folder)
    first = range(1000, 1000 + 7 * int(count), 7)
    ids = torch.tensor([[1, *range(500, 515), token, *range(600, 615)] for token in first])
    began, used = time.perf_counter(), time.process_time()
    with torch.no_grad():
        logits = run(ids)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    if not bool(torch.isfinite(logits).all()):
        raise SystemExit("the logits are not finite")
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    peak = int(found[1]) * 1024 if found else 0
    print(json.dumps({"seconds": seconds, "cpu": used, "read": read, "peak": peak}))


if __name__ == "__main__":
    main()
