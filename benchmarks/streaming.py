"""Compares a streamed model with a resident one, under a limit on the memory of the process.

    python benchmarks/streaming.py                  # a small Mixtral, a minute
    python benchmarks/streaming.py --large          # 6.7 GB in bfloat16, needs 7 GB of disk
    python benchmarks/streaming.py --offload        # accelerate's disk offload beside it
    python benchmarks/streaming.py --airllm PYTHON  # AirLLM, by a Python that has it

It writes a random Mixtral, screens the whole vocabulary and verifies some tokens with
`model.residency: streamed` in a process that may allocate 1.5 GB at most (RLIMIT_DATA, which does
not count the cache of files), and again without a limit with `resident`, where it verifies the same
tokens. A second streamed run is killed (SIGKILL) after its first passes and resumed. The table is
Markdown. It fails if verdicts differ, the bytes read are not those of the plan, or memory differs
from it by more than 10 %.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import click
import torch
from safetensors.torch import save_file

import glitchrun
from tests.support.tiny_models import mistral_tokenizer

LARGE = {"hidden": 2048, "inner": 4096, "layers": 2, "experts": 64, "heads": 16, "kv": 4}
SMALL = {"hidden": 512, "inner": 512, "layers": 4, "experts": 8, "heads": 8, "kv": 4}
VOCABULARY = 32_000


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of the spec."""

    tokens: dict[tuple[str, int], dict[str, Any]]
    """Lines of tokens.jsonl by step and token."""
    metrics: Mapping[str, float]
    model: Mapping[str, Any]
    screen: float
    """Seconds of the screen alone."""
    seconds: float
    cpu: float
    """Seconds of all cores: on a busy machine less uncertain than the time that passed."""


def write_model(folder: Path, shape: Mapping[str, int]) -> int:
    """Writes a random Mixtral in bfloat16, a file for each layer; returns its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    mistral_tokenizer(folder)
    hidden, inner, head = shape["hidden"], shape["inner"], shape["hidden"] // shape["heads"]
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "num_local_experts": shape["experts"],
        "num_experts_per_tok": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int, spread: float = 1.0) -> torch.Tensor:
        scale = spread / columns**0.5
        return (torch.randn(rows, columns, generator=random) * scale).to(torch.bfloat16)

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    places: dict[str, str] = {}
    written = 0

    def save(number: int, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal written
        name = f"model-{number:05}-of-{shape['layers'] + 1:05}.safetensors"
        save_file(tensors, folder / name)
        places.update(dict.fromkeys(tensors, name))
        written += sum(tensor.nbytes for tensor in tensors.values())

    save(
        1,
        {
            "model.embed_tokens.weight": matrix(VOCABULARY, hidden, hidden**0.5),
            "model.norm.weight": ones,
            "lm_head.weight": matrix(VOCABULARY, hidden),
        },
    )
    for layer in range(shape["layers"]):
        stem = f"model.layers.{layer}"
        tensors = {
            f"{stem}.input_layernorm.weight": ones.clone(),
            f"{stem}.post_attention_layernorm.weight": ones.clone(),
            f"{stem}.self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{stem}.self_attn.k_proj.weight": matrix(shape["kv"] * head, hidden),
            f"{stem}.self_attn.v_proj.weight": matrix(shape["kv"] * head, hidden),
            f"{stem}.self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{stem}.block_sparse_moe.gate.weight": matrix(shape["experts"], hidden),
        }
        for expert in range(shape["experts"]):
            part = f"{stem}.block_sparse_moe.experts.{expert}"
            tensors[f"{part}.w1.weight"] = matrix(inner, hidden)
            tensors[f"{part}.w3.weight"] = matrix(inner, hidden)
            tensors[f"{part}.w2.weight"] = matrix(hidden, inner)
        save(layer + 2, tensors)
    index = {"metadata": {"total_size": written}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return written


SCREEN = {"id": "screen", "strategy": "mine", "search": "screen", "budget": 64}


def write_spec(
    folder: Path, model: Path, residency: str, verified: int, *steps: Mapping[str, Any]
) -> None:
    """Writes a spec that verifies some tokens, and has some other steps."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = list(range(1000, 1000 + 7 * verified, 7))
    spec = {
        "apiVersion": "glitchrun/v1",
        "kind": "Experiment",
        "metadata": {"name": residency},
        "model": {"path": str(model), "residency": residency, "device": "cpu"},
        "template": "mistral",
        "steps": [
            {"id": "verify", "strategy": "test", "tokens": {"ids": ids}},
            *steps,
        ],
    }
    (folder / "spec.yaml").write_text(json.dumps(spec), encoding="utf-8")


def limited(limit: int | None) -> Any:
    """A function that limits the memory of a child process before it starts."""

    def limit_it() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    return limit_it


def start(folder: Path, command: str, limit: int | None) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "glitchrun", command, "spec.yaml", "-o", "json"]
    words += ["--yes"] if command == "apply" else []
    # RLIMIT_DATA counts what allocators reserve, so they are kept from reserving for each thread.
    threads = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.Popen(
        words,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | threads,
        preexec_fn=limited(limit),
    )


def peak_of(process: subprocess.Popen[str], peaks: list[int]) -> None:
    """Keeps the peak of a process's resident memory, in bytes, as the only item of a list.

    Not getrusage: its peak includes that of the process that forked this one.
    """
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        peaks[:] = [max(peaks[0], int(found[1]) * 1024 if found else 0)]
        time.sleep(0.1)


def finish(process: subprocess.Popen[str], peaks: list[int] | None = None) -> Any:
    watcher = Thread(target=peak_of, args=(process, peaks if peaks is not None else [0]))
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"glitchrun failed with exit code {process.returncode}")
    return json.loads(out)


def apply(folder: Path, limit: int | None) -> Measured:
    began = time.perf_counter()
    peaks = [0]
    used = cpu_seconds()
    found = finish(start(folder, "apply", limit), peaks)
    seconds, used = time.perf_counter() - began, cpu_seconds() - used
    (run,) = found["runs"]
    lines = (Path(run["artifacts_dir"]) / "tokens.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    tokens = {(row["step"], row["token_id"]): row for row in rows}
    record = glitchrun.load_run(str(Path(run["artifacts_dir"]).parent)).record
    assert record.model is not None
    model = {"bytes_read": record.model.bytes_read, "peak_bytes": peaks[0]}
    batches = (timed.batch for step in record.steps for timed in step.batches)
    screen = sum(one.search_seconds for one in batches if one.screened)
    return Measured(tokens, run["metrics"], model, screen, seconds, used)


def cpu_seconds() -> float:
    """Seconds that the processes which this one started and which ended used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def killed_and_resumed(folder: Path, limit: int | None) -> Measured:
    """Kills a run once it has written a batch of verdicts, and resumes it."""
    process = start(folder, "apply", limit)
    while process.poll() is None:
        ledgers = list(folder.glob("mlruns/steps/*/attempt-1/ledger.jsonl"))
        if any('"batch"' in ledger.read_text(encoding="utf-8") for ledger in ledgers):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.1)
    process.wait()
    return apply(folder, limit)


def compared(one: Measured, other: Measured) -> str:
    """How far two runs agree on the tokens that both verified; fails if a verdict differs.

    In bfloat16 the most likely token may differ where two tokens almost tie that are not the one
    asked for: a verdict does not depend on which of them it is.
    """
    common = [key for key in one.tokens if key in other.tokens]
    pairs = [
        (result, other.tokens[key]["probes"][name])
        for key in common
        for name, result in one.tokens[key]["probes"].items()
    ]
    verdicts = sum(first["pass"] != second["pass"] for first, second in pairs)
    argmax = sum(first["argmax"] != second["argmax"] for first, second in pairs)
    largest = max(abs(first["p"] - second["p"]) for first, second in pairs)
    text = f"{len(pairs):,} verdicts: {verdicts} differ; {argmax} most likely tokens differ; "
    if verdicts:
        raise SystemExit(text)
    return f"{text}p differs by at most {largest:.1e}"


def other_tool(tool: str, python: str, model: Path, tokens: int, folder: Path) -> str:
    """A row of the table: another tool on the same model and tokens, without a limit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    script = Path(__file__).parent / "support" / "other_tools.py"
    words = [python, str(script), tool, str(model), str(tokens), str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    shutil.rmtree(folder, ignore_errors=True)
    run = json.loads(found.stdout.splitlines()[-1])
    rate, memory, read = tokens / run["seconds"], run["peak"] / 1e9, run["read"] / 1e9
    name = f"{tool}, {tokens} tokens in one batch"
    return f"| {name} | {rate:.2f} | | {memory:.2f} | | {read:.1f} | | {run['cpu']:.0f} |"


def line(name: str, run: Measured, planned: Mapping[str, Any] | None) -> str:
    rates = [run.metrics["verify/tokens_per_second"], run.screen]
    memory = f"{run.model['peak_bytes'] / 1e9:.2f}"
    read = f"{run.model['bytes_read'] / 1e9:.1f}" if planned else ""
    plan = f"{planned['bytes'] / 1e9:.2f}" if planned else ""
    times = (f"{run.seconds:.0f}", f"{run.cpu:.0f}")
    cells = (name, f"{rates[0]:.2f}", f"{rates[1]:.0f}", memory, plan, read, *times)
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--large", is_flag=True, help="6.7 GB instead of 100 MB.")
@click.option("--verified", default=None, type=int, help="Tokens verified.")
@click.option("--limit", default=1.5e9, help="Bytes that the streamed process may allocate.")
@click.option("--offload", is_flag=True, help="Measure accelerate's disk offload too.")
@click.option("--airllm", help="A Python with AirLLM and transformers 4.57: measure it too.")
@click.option("--others", default=256, help="Tokens that these tools get, in one batch.")
@click.option("--kill/--no-kill", default=True, help="Kill a run and resume it.")
@click.option("--whole/--no-whole", default=True, help="Also a run that is not killed.")
@click.option("--screen/--no-screen", default=True, help="Screen the whole vocabulary too.")
@click.option("--resident/--no-resident", default=True, help="Compare with a resident run.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where to work. It is kept, and finished steps are used again; default: a temporary one.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="The model's folder. It is written if it is not there, and kept.",
)
def main(
    large: bool,
    verified: int | None,
    limit: float,
    offload: bool,
    airllm: str | None,
    others: int,
    kill: bool,
    whole: bool,
    screen: bool,
    resident: bool,
    folder: Path | None,
    model: Path | None,
) -> None:
    place = (folder or Path(tempfile.mkdtemp(prefix="streaming-"))).absolute()
    try:
        measure(
            place,
            (model or place / "model").absolute(),
            large,
            verified or (2000 if large else 200),
            int(limit),
            (kill, whole, screen, resident),
        )
        tools = [("accelerate", sys.executable)] if offload else []
        for tool, python in [*tools, *([("airllm", airllm)] if airllm else [])]:
            print(other_tool(tool, python, model or place / "model", others, place / tool))
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def measure(
    place: Path,
    model: Path,
    large: bool,
    verified: int,
    limit: int,
    runs: tuple[bool, bool, bool, bool],
) -> None:
    index = model / "model.safetensors.index.json"  # written last
    if not index.exists():
        write_model(model, LARGE if large else SMALL)
    stored = json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"]
    print(f"a random Mixtral of {stored / 1e9:.2f} GB in bfloat16, limit {limit / 1e9:.1f} GB\n")
    kill, whole, screen, resident = runs
    for name in ("streamed", "killed"):
        write_spec(place / name, model, "streamed", verified, *([SCREEN] if screen else []))
    (run,) = finish(start(place / "streamed", "plan", limit))["runs"]
    planned = run["residency"]["streamed"]
    print(f"plan: {json.dumps(planned)}\n", flush=True)
    names = ("run", "verified tokens/s", "screen, s", "peak, GB", "plan, GB", "read, GB")
    print(f"| {' | '.join((*names, 'whole, s', 'cpu, s'))} |")
    print(f"|{'---|' * 8}", flush=True)
    if kill:
        streamed = killed_and_resumed(place / "killed", limit)
        print(line("killed and resumed", streamed, planned), flush=True)
    if whole:
        streamed = apply(place / "streamed", limit)
        print(line("streamed", streamed, planned), flush=True)
    if resident:
        # It does not screen, which takes long, but verifies what the streamed run found so.
        found = sorted(token for step, token in streamed.tokens if step == "screen")
        also = {"id": "screen", "strategy": "test", "tokens": {"ids": found}}
        write_spec(place / "resident", model, "resident", verified, *([also] if found else []))
        held = apply(place / "resident", None)
        print(line("resident", held, None), flush=True)
        print(f"\n{compared(streamed, held)}")
    counted = streamed.model["bytes_read"] - run["residency"]["streamed"]["bytes_read"]
    print(f"bytes read beyond the plan's passes (norms, near-ties): {counted:,}")
    off = abs(streamed.model["peak_bytes"] / planned["bytes"] - 1)
    if planned["pass_bytes"] != stored or off > 0.1:
        raise SystemExit(f"bytes or memory differ from the plan ({off:.0%})")


if __name__ == "__main__":
    main()
