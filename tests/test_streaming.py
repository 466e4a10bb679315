"""Streamed models give what resident ones give, and read what the plan says."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.headers import read_header
from glitchrun.checkpoint.quantized_units import quantized_units
from glitchrun.checkpoint.stream_units import stream_units, why_not_streamable
from glitchrun.errors import ExitCode, ModelUnavailable, PreflightError, RunError
from glitchrun.events import Entry
from glitchrun.ledger.record import RunRecord
from glitchrun.model import load, quantized_cache
from glitchrun.model.streamed import StreamedModel, load_streamed
from glitchrun.model.weight_reader import Reader, read_tensor
from glitchrun.plan.build import PlannedRun, Resolved, build
from glitchrun.plan.residency import Residency
from glitchrun.plan.streaming import StreamPlan, stream_plan, text_groups, whole_passes
from glitchrun.plan.weight_bytes import active_parameters, weights
from glitchrun.probing import arithmetic
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.fast_backend import FastBackend
from glitchrun.probing.logit_statistics import Statistics
from glitchrun.probing.streamed_backend import StreamedBackend
from glitchrun.runner.apply import apply
from glitchrun.runner.models import Models
from glitchrun.runner.options import Options
from glitchrun.runner.signals import Interrupt, Stopped
from glitchrun.spec.experiment_loading import load_experiment
from glitchrun.spec.problems import InvalidSpec
from glitchrun.spec.strategy import STRATEGIES, Work
from glitchrun.spec.types import ModelSpec
from tests.support import quiet, tiny_models
from tests.support.quiet import Quiet
from tests.support.tiny_gguf import tiny_gguf

Build = Callable[..., Path]
SHAPES: dict[str, tuple[Build, dict[str, Any]]] = {
    "llama": (tiny_models.tiny_llama, {}),
    "tied": (tiny_models.tiny_llama, {"tied": True, "dtype": torch.bfloat16}),
    "mixtral": (tiny_models.tiny_mixtral, {}),
    "shards": (tiny_models.tiny_mixtral, {"shard_size": "200KB", "dtype": torch.bfloat16}),
    "qwen2": (tiny_models.tiny_qwen, {}),
}


@pytest.fixture(scope="module")
def mixtral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_mixtral(tmp_path_factory.mktemp("models") / "mixtral")


def both(folder: Path, quantization: str = "none") -> tuple[Backend, StreamedBackend]:
    """The resident and the streamed backend of a checkpoint."""
    spec = ModelSpec(str(folder), quantization=quantization)
    streamed, why = best_backend(load_streamed(spec))
    assert isinstance(streamed, StreamedBackend), why
    return best_backend(load(spec))[0], streamed


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 400, (rows, length), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize(
    ("shape", "quantization"),
    [*((shape, "none") for shape in SHAPES), ("llama", "int8"), ("mixtral", "int4")],
)
def test_statistics_and_scores_equal_those_of_a_resident_model(
    shape: str, quantization: str, tmp_path: Path
) -> None:
    build, settings = SHAPES[shape]
    resident, streamed = both(build(tmp_path / "model", **settings), quantization)
    suffixes, prefix = ids(70, 9), [3, 4, 5, 6]  # more rows than one chunk has
    targets = suffixes[:, 0]
    theirs = resident.statistics(prefix, suffixes, targets, float32=True)
    ours = streamed.statistics(prefix, suffixes, targets, float32=True)
    assert torch.equal(ours.argmax, theirs.argmax)
    assert torch.allclose(ours.p, theirs.p, rtol=0, atol=1e-5)
    assert torch.allclose(ours.gap, theirs.gap, rtol=0, atol=1e-4)
    alone = streamed.statistics_alone(suffixes[:5], targets[:5])
    wanted = resident.statistics_alone(suffixes[:5], targets[:5])
    assert torch.allclose(alone.p, wanted.p, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stored", ["int4", "int8", "gguf"])
def test_packed_checkpoints_are_unpacked_layer_by_layer(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stored == "gguf":
        monkeypatch.setenv("GLITCHRUN_CACHE", str(tmp_path / "cache"))
        folder = tiny_gguf(tmp_path / "model.gguf")
    else:
        source = tiny_models.tiny_llama(tmp_path / "source")
        folder = tiny_models.prequantized(source, tmp_path / "stored", stored)
    header = read_header(resolve(str(folder)))
    assert why_not_streamable(header) is None
    if stored != "gguf":
        floats = read_header(resolve(str(source)))
        assert active_parameters(header) == active_parameters(floats)
        assert weights(header, "none").parameters == weights(floats, "none").parameters
    resident, streamed = both(folder)
    assert isinstance(resident, FastBackend)
    assert streamed.chosen == resident.chosen
    suffixes = ids(70, 9) % header.vocab
    theirs, ours = (
        one.statistics([3, 4], suffixes, suffixes[:, 0]) for one in (resident, streamed)
    )
    assert torch.equal(ours.argmax, theirs.argmax)
    assert torch.allclose(ours.p, theirs.p, rtol=0, atol=1e-5)
    before = streamed.model.bytes_read[0]
    streamed.last_logits([1], suffixes)
    planned = stream_plan(header, "none", stream_units(header), "cpu")
    assert streamed.model.bytes_read[0] - before == planned.pass_bytes


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_quantized_weights_are_kept_where_the_spec_asks_for_it(
    scheme: str, mixtral_folder: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(str(mixtral_folder), quantization=scheme)
    keeping = replace(spec, keep_quantized=True)
    anew = load_streamed(spec)
    first, second = (load_streamed(keeping, cache=tmp_path) for _ in range(2))
    assert len([*(tmp_path / "quantized").glob("*/*.safetensors")]) == 2 * (1 + 4)
    units = quantized_units(stream_units(read_header(resolve(spec.path))), scheme)
    assert second.plan.pass_bytes == units.pass_bytes < anew.plan.pass_bytes
    for (_, wanted), (unit, kept) in zip(
        anew.read(anew.units.body), second.read(second.units.body), strict=True
    ):
        assert kept.keys() == wanted.keys()
        assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
        assert sum(one.nbytes for one in kept.values()) <= unit.numel * second.held_bytes
    embedding = sum(unit.nbytes for unit in units.embedding)
    assert second.bytes_read[0] == second.plan.headless_bytes - embedding
    assert first.units == second.units


def test_a_full_disk_and_a_damaged_file_leave_no_part_of_kept_weights(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"a part")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    spec = ModelSpec(str(llama_folder), quantization="int4", keep_quantized=True)
    with monkeypatch.context() as patch:
        patch.setattr(quantized_cache, "save_file", full)
        with pytest.raises(PreflightError, match="No space left"):
            load_streamed(spec, cache=tmp_path)
    whole = load_streamed(spec, cache=tmp_path).units
    assert not [*(tmp_path / "quantized").glob("*.partial")]
    next(tmp_path.rglob("layer-1.safetensors")).write_bytes(b"")  # as a power cut may leave it
    assert load_streamed(spec, cache=tmp_path).units == whole


def test_a_flipped_bit_in_kept_weights_is_noticed_and_mended(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(
        str(llama_folder), quantization="int8", residency="streamed", keep_quantized=True
    )
    monkeypatch.setenv("GLITCHRUN_CACHE", str(tmp_path))
    said: list[str] = []

    def loaded() -> list[str]:
        said.clear()
        Models(said.append).get(spec)
        return [line for line in said if "damaged" in line]

    assert loaded() == []
    file = next(tmp_path.rglob("layer-1.safetensors"))
    good = file.read_bytes()
    file.write_bytes(good[:-9] + bytes([good[-9] ^ 4]) + good[-8:])
    (line,) = loaded()
    assert str(file) in line
    assert "quantized again" in line
    assert file.read_bytes() == good
    assert loaded() == []
    checksums = file.with_name("checksums.json")
    assert json.loads(checksums.read_text()).keys() == {"layer-0.safetensors", file.name}
    with monkeypatch.context() as patch:  # a file that was checked is not read again
        patch.setattr(quantized_cache, "file_digest", lambda path: "")
        assert loaded() == []
    checksums.write_text("{")
    monkeypatch.setattr(quantized_cache, "_checked", {})
    assert "and 1 more" in loaded()[0]
    assert loaded() == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quant_method": "fp8"}, "(fp8)"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "not as nf4 with double"),
    ],
)
def test_other_packed_formats_are_refused_with_the_remedy(
    settings: dict[str, Any], reason: str, llama_folder: Path
) -> None:
    header = read_header(resolve(str(llama_folder)))
    method = settings.get("quant_method", "bitsandbytes")
    config = {**header.config, "quantization_config": settings}
    found = why_not_streamable(replace(header, prequantized=method, config=config)) or ""
    assert reason in found
    assert "use the original checkpoint with model.quantization: int4 or int8" in found


def test_screen_and_continuations_equal_those_of_a_resident_model(mixtral_folder: Path) -> None:
    resident, streamed = both(mixtral_folder)
    tokens = torch.arange(300)
    frozen = [one.freeze([3, 4], [5, 6, 7], tokens[:64]) for one in (resident, streamed)]
    theirs = resident.screen_scores(frozen[0], tokens, 290)
    ours = streamed.screen_scores(frozen[1], tokens, 290)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == (290,)
        assert torch.allclose(one, other, rtol=0, atol=1e-5)
    caches = [one.start([9, 8, 7], 4) for one in (resident, streamed)]
    for part in ids(4, 3).split([2, 1], dim=1):
        logits = []
        for place, one in enumerate((resident, streamed)):
            found, cache = one.step(part, caches[place])
            caches[place] = one.select(cache, torch.tensor([0, 0, 3, 1]))
            logits.append(found)
        assert torch.allclose(logits[1], logits[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", ["tied", "shards"])
def test_a_pass_reads_each_weight_once(shape: str, tmp_path: Path) -> None:
    build, settings = SHAPES[shape]
    folder = build(tmp_path / "model", **settings)
    _, streamed = both(folder)
    model = streamed.model
    header = read_header(resolve(str(folder)))
    stored = sum(info.nbytes for info in header.tensors.values())
    table = header.tensors[header.embedding].nbytes
    assert model.plan.stored_bytes == stored
    assert model.plan.pass_bytes == stored + (table if shape == "tied" else 0)
    before = model.bytes_read[0]
    streamed.last_logits([1, 2], ids(130, 4))
    assert model.bytes_read[0] - before == model.plan.pass_bytes
    before = model.bytes_read[0]
    streamed.freeze([1, 2], [3, 4], torch.arange(5))
    assert model.bytes_read[0] - before == model.plan.headless_bytes


def test_weights_in_memory_stay_within_the_capacity(mixtral_folder: Path) -> None:
    model = load_streamed(ModelSpec(str(mixtral_folder)))
    kinds = []
    for unit, tensors in model.read(model.units.body):
        kinds.append(unit.kind)
        held = sum(tensor.nbytes for tensor in tensors.values())
        assert held == unit.numel * model.held_bytes <= model.plan.capacity
    assert kinds == 2 * (["layer"] + ["expert"] * 4)


def test_experts_are_read_into_the_memory_of_those_before(mixtral_folder: Path) -> None:
    model = load_streamed(ModelSpec(str(mixtral_folder)))
    places, values = [], []
    for unit, tensors in model.read(model.units.body):
        if unit.kind == "expert":
            places.append(tensors["gate_proj"].data_ptr())
            values.append(tensors["gate_proj"].clone())
    assert len(set(places)) < len(places) == 8
    experts = [unit for unit in model.units.body if unit.kind == "expert"]
    for unit, value in zip(experts, values, strict=True):
        assert torch.equal(value, read_tensor(unit.tensors["gate_proj"]))


def test_reading_that_is_given_up_ends_its_thread(mixtral_folder: Path) -> None:
    model = load_streamed(ModelSpec(str(mixtral_folder)))
    for _ in model.read(model.units.body):
        break
    first = next(iter(model.read(model.units.body)))
    assert first[0] == model.units.body[0]


def test_a_file_that_was_cut_short_is_reported(tmp_path: Path) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "model")
    _, streamed = both(folder)
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(ModelUnavailable, match="has changed while it was streamed"):
        streamed.last_logits([1], ids(2, 3))


def test_a_file_that_was_replaced_is_reported(tmp_path: Path) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "model")
    _, streamed = both(folder)
    file = folder / "model.safetensors"
    (folder / "new").write_bytes(file.read_bytes())
    (folder / "new").replace(file)
    with pytest.raises(ModelUnavailable, match="has changed while it was streamed"):
        streamed.last_logits([1], ids(2, 3))


def test_weights_are_compared_with_the_model_that_the_config_describes(tmp_path: Path) -> None:
    folder = tiny_models.tiny_mixtral(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    with pytest.raises(ModelUnavailable, match=r"experts.0.down_proj has shape \(64, \d+\), the"):
        load_streamed(ModelSpec(str(folder)))


def test_missing_weights_are_reported(tmp_path: Path) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"missing, such as model.layers.1.mlp.up_proj"):
        load_streamed(ModelSpec(str(folder)))


def test_a_reader_that_fails_unexpectedly_does_not_block(
    mixtral_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("unexpected")

    model = load_streamed(ModelSpec(str(mixtral_folder)))
    units = model.units.body
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with pytest.raises(RunError, match="ended early"):
        next(iter(Reader(units, model.plan.capacity, model.held_bytes, fail)))


def test_the_embedding_of_a_streamed_model_is_read_when_asked_for(llama_folder: Path) -> None:
    model = load_streamed(ModelSpec(str(llama_folder)))
    whole = load(ModelSpec(str(llama_folder)))
    assert isinstance(model, StreamedModel)
    assert torch.equal(model.input_embeddings, whole.input_embeddings)
    assert torch.equal(model.output_embeddings, whole.output_embeddings)
    assert (model.vocab_size, model.hidden_size) == tuple(whole.input_embeddings.shape)
    assert model.positions == whole.positions
    assert model.bytes == whole.bytes


def test_the_head_is_read_once_until_the_next_pass(llama_folder: Path) -> None:
    model = load_streamed(ModelSpec(str(llama_folder)))
    head = model.units.whole_head.nbytes
    first, second = torch.cat([*model.head_blocks()]), torch.cat([*model.head_blocks()])
    assert torch.equal(first, model.output_embeddings)
    assert torch.equal(first, second)
    assert model.bytes_read[0] == 2 * head  # one of the two is output_embeddings
    for _ in model.read(model.units.body):
        pass
    before = model.bytes_read[0]
    list(model.head_blocks())
    assert model.bytes_read[0] == before + head


@pytest.mark.parametrize(
    ("build", "reason"),
    [(tiny_models.tiny_gpt2, "does not have the layers"), (tiny_models.tiny_qwen_moe, "differ")],
)
def test_other_layers_are_refused(build: Build, reason: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "model")
    with pytest.raises(PreflightError, match=rf"model\.residency.*{reason}"):
        best_backend(load_streamed(ModelSpec(str(folder))))


def test_experts_are_read_one_by_one(mixtral_folder: Path) -> None:
    header = read_header(resolve(str(mixtral_folder)))
    units = stream_units(header)
    assert why_not_streamable(header) is None
    assert [unit.kind for unit in units.layers[1]] == ["layer"] + ["expert"] * 4
    assert units.layers[1][3].expert == 2
    assert units.layers[1][3].tensors["gate_proj"].info.shape == (128, 64)


@pytest.mark.parametrize("quantization", ["none", "bfloat16", "int8"])
@pytest.mark.parametrize("build", [tiny_models.tiny_llama, tiny_models.tiny_mixtral])
def test_both_residencies_choose_the_same_arithmetic(
    build: Build, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"float32": 10.0, "bfloat16": 1.0, "int8": 1.0}
    monkeypatch.setattr(arithmetic, "_SMALL", 0)
    monkeypatch.setattr(arithmetic, "measured", lambda shapes: seconds)
    resident, streamed = both(build(tmp_path / "model"), quantization)
    assert isinstance(resident, FastBackend)
    assert streamed.chosen == resident.chosen
    # Rounding would change experts, which moves logits beyond the margin of near-ties.
    narrow = build is tiny_models.tiny_llama and quantization == "bfloat16"
    assert streamed.arithmetic == (torch.bfloat16 if narrow else torch.float32)
    assert best_backend(streamed.model)[1].endswith(streamed.chosen.why)


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_run_that_ends_early_resumes_after_its_last_batch(
    end: str, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends a run between two passes, and SIGKILL in the middle of one."""
    quiet.without_store_and_report(monkeypatch)
    monkeypatch.setattr(StreamedBackend, "pass_rows", 64)
    monkeypatch.setattr(StreamedBackend, "batch_passes", 1)
    passes: list[int] = []
    statistics = StreamedBackend.statistics

    def counted(self: StreamedBackend, *args: Any, **options: Any) -> Statistics:
        passes.append(len(args[1]))
        return statistics(self, *args, **options)

    def check(self: Interrupt) -> None:
        if passes:
            raise Stopped(ExitCode.SIGINT)

    monkeypatch.setattr(StreamedBackend, "statistics", counted)
    step = f"\n  - {{id: some, strategy: test, tokens: {{ids: {[*range(200, 360)]}}}}}\n"

    def ran(residency: str, root: str) -> RunRecord:
        spec = write_spec(llama_folder, tmp_path, residency, step)
        (outcome,) = apply(load_experiment(spec), tmp_path / root, Options(), Quiet()).outcomes
        return outcome.record

    def results(record: RunRecord) -> dict[int, dict[str, tuple[bool, int]]]:
        return {
            fact.token.id: {name: (one.passed, one.argmax) for name, one in fact.probes.items()}
            for batch in record.steps[0].batches
            for fact in batch.batch.token_facts
        }

    def kill(model: StreamedModel, units: Any, *args: Any) -> Any:
        for unit, tensors in read(model, units, *args):
            if len(passes) == 2 and unit.kind == "layer" and unit.layer == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield unit, tensors

    if end == "killed":
        read = StreamedModel.read
        if (child := os.fork()) == 0:
            monkeypatch.setattr(StreamedModel, "read", kill)
            ran("streamed", "root")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        passes.append(64)  # those of the other process are counted there
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Interrupt, "check", check)
            assert ran("streamed", "root").status == "KILLED"
    assert passes == [64]
    record = ran("streamed", "root")
    assert passes == [64, 64, 32]
    assert record.model is not None
    assert record.model.residency == "streamed"
    assert len(results(record)) == 160
    if end == "killed":
        assert results(record) == results(ran("resident", "other"))


def test_a_streamed_cascade_reads_the_model_a_few_times_and_verifies_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet.without_store_and_report(monkeypatch)
    folder = tiny_models.tiny_llama(tmp_path / "model")
    passes: list[int] = []
    statistics = StreamedBackend.statistics

    def counted(self: StreamedBackend, *args: Any, **options: Any) -> Statistics:
        passes.append(len(args[1]))
        return statistics(self, *args, **options)

    monkeypatch.setattr(StreamedBackend, "statistics", counted)
    step = "\n  - {id: c, strategy: mine, search: cascade, recall: 0.5}\n"

    def batches(residency: str) -> list[tuple[str, tuple[int, ...]]]:
        spec = write_spec(folder, tmp_path, residency, step)
        (outcome,) = apply(load_experiment(spec), tmp_path / residency, Options(), Quiet()).outcomes
        found = (timed.batch for timed in outcome.record.steps[0].batches)
        return [
            (one.stage, tuple(fact.token.id for fact in one.token_facts))
            for one in found
            if one.token_facts
        ]

    streamed, resident = batches("streamed"), batches("resident")
    assert [token for _, some in streamed for token in some] == [
        token for _, some in resident for token in some
    ]
    front = [len(some) for stage, some in streamed if stage == "front"]
    assert len(front) > 3  # a front still grows by blocks
    assert passes[:2] == [64, 64]
    assert len(passes) < len(front)
    assert sum(passes) == sum(len(some) for _, some in streamed)  # none of them twice


PREDICT = """
  - id: ask
    strategy: predict
    formats: [raw, raw-space]
    max_new_tokens: 3
    prompts:
      - {text: the man said, expected: another thing}
      - {text: of}
      - {text: it was the end of, expected: the}
"""


def test_prompts_of_predict_share_passes(
    mixtral_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet.without_store_and_report(monkeypatch)
    monkeypatch.setattr(StreamedBackend, "pass_rows", 8)
    folder = mixtral_folder
    read: list[int] = []
    read_texts = StreamedBackend.read_texts

    def counted(self: StreamedBackend, *args: Any) -> None:
        before = self.model.bytes_read[0]
        read_texts(self, *args)
        read.append(self.model.bytes_read[0] - before)

    monkeypatch.setattr(StreamedBackend, "read_texts", counted)

    def entries(residency: str) -> list[Entry]:
        spec = write_spec(folder, tmp_path, residency, PREDICT)
        spec.write_text(spec.read_text().replace("device: cpu", "device: cpu, quantization: int8"))
        (outcome,) = apply(load_experiment(spec), tmp_path / residency, Options(), Quiet()).outcomes
        return [one for timed in outcome.record.steps[0].batches for one in timed.batch.entries]

    streamed, resident = entries("streamed"), entries("resident")
    plan = residency_of(planned(folder, tmp_path, "streamed", PREDICT)).stream
    assert plan is not None
    (step,) = load_experiment(write_spec(folder, tmp_path, "auto", PREDICT)).cells[0].spec.steps
    config = STRATEGIES["predict"].config_of(step)
    (load,) = STRATEGIES["predict"].workloads(config, "ask", 0)
    # One pass for all that is known before, and one for each further token of the answers. With
    # eight texts in a pass, the third prompt has passes of its own.
    assert whole_passes(load, replace(plan, verify_tokens=64), Work(0)) == (3, 0)
    assert whole_passes(load, replace(plan, verify_tokens=8), Work(0)) == (6, 0)
    assert read == 6 * [plan.pass_bytes]
    assert len(streamed) == len(resident) == 6 * (1 + 10 + 1)
    for one, other in zip(streamed, resident, strict=True):
        for name, value in other.cells.items():
            if isinstance(value, float):
                assert one.cells[name] == pytest.approx(value, rel=1e-4)
            else:
                assert one.cells[name] == value


def test_prompts_are_grouped_in_order_after_those_that_are_done() -> None:
    assert text_groups([6, 2, 6, 9, 1], 8) == [range(2), range(2, 3), range(3, 4), range(4, 5)]
    assert text_groups([6, 2, 6, 1, 1], 8, 3) == [range(3, 5)]
    assert text_groups([6, 2], 8, 2) == []


# The plan -------------------------------------------------------------------------------------

SPEC = """
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: streamed}
model: {path: MODEL, residency: RESIDENCY, device: cpu}
template: raw
steps:
  - {id: all, strategy: scan, probes: strict}
  - {id: low, strategy: mine, search: low-norm, budget: 100}
  - {id: worst, strategy: mine, search: screen, budget: 50}
"""


def write_spec(folder: Path, path: Path, residency: str, steps: str = "") -> Path:
    """Writes a spec on the model in `folder`."""
    head, _, rest = SPEC.partition("steps:")
    text = head + "steps:" + (steps or rest)
    spec = path / "spec.yaml"
    spec.write_text(text.replace("MODEL", str(folder)).replace("RESIDENCY", residency))
    return spec


def planned(folder: Path, path: Path, residency: str, steps: str = "") -> PlannedRun:
    """The plan of a spec on the model in `folder`."""
    spec = write_spec(folder, path, residency, steps)
    resolved = Resolved(scopes={"all": 400, "low": 400, "worst": 400}, positions=(10, 12))
    (run,) = build(load_experiment(spec), lambda key: None, resolve=lambda *_: resolved).runs
    return run


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("glitchrun.plan.devices.main_memory", lambda: (count, count, "test"))


def residency_of(run: PlannedRun) -> Residency:
    assert run.residency is not None
    return run.residency


def test_the_plan_counts_passes_and_bytes(mixtral_folder: Path, tmp_path: Path) -> None:
    run = planned(mixtral_folder, tmp_path, "streamed")
    found = residency_of(run)
    assert found.chosen == "streamed"
    assert found.stream is not None
    assert found.stream.verify_tokens == 448  # the 400 tokens, in whole chunks of 64
    # Each probe of a scan is a pass; by-order searches ignore batch_size; a screen is one pass for
    # its calibration, one for the scores and one for the verdicts.
    assert found.passes == {"all": (3, 0), "low": (1, 0), "worst": (2, 1)}
    whole, headless = found.stream.pass_bytes, found.stream.headless_bytes
    assert found.bytes_read() == 6 * whole + headless
    data = run.to_json()["residency"]
    assert data["streamed"]["bytes_read"] == 6 * whole + headless
    assert data["streamed"]["passes"] == {"all": 3, "low": 1, "worst": 3}
    assert data["resident"]["seconds"] > 0
    assert data["streamed"]["seconds"] > 0


def test_the_plan_counts_the_passes_of_generated_answers(
    mixtral_folder: Path, tmp_path: Path
) -> None:
    steps = "\n  - {id: all, strategy: scan, probes: magikarp}\n"
    found = residency_of(planned(mixtral_folder, tmp_path, "streamed", steps))
    # Three probes, each with a prefix, the prompt and two more positions.
    assert found.passes == {"all": (9, 3)}


def test_rows_of_generated_answers_fit_with_their_cache(mixtral_folder: Path) -> None:
    header = read_header(resolve(str(mixtral_folder)))

    def plan(free: int | None, generated: int) -> StreamPlan:
        return stream_plan(
            header, "none", stream_units(header), "cpu",
            free=free, positions=(10, 2000), tokens=(400, 0), generated=generated,
        )  # fmt: skip

    plain, roomy = plan(None, 0), plan(None, 3)
    assert roomy.answer_tokens == roomy.verify_tokens == plain.verify_tokens
    # Two layers, keys and values of two heads of 16 in float32, with headroom for the answer.
    cached = 2 * 2 * 2 * 16 * 4 * (10 + 2000 + 32)
    assert roomy.activation_bytes == plain.activation_bytes + roomy.answer_tokens * cached
    tight = plan(roomy.total_bytes - roomy.answer_tokens * cached // 2, 3)
    assert tight.verify_tokens == roomy.verify_tokens
    assert 0 < tight.answer_tokens < roomy.answer_tokens
    assert tight.total_bytes <= roomy.total_bytes - roomy.answer_tokens * cached // 2


@pytest.mark.parametrize(("shape", "passes"), [("tied", 5), ("llama", 1), ("shards", 1)])
def test_short_passes_in_bfloat16_share_the_pass_for_near_ties(
    shape: str, passes: int, tmp_path: Path
) -> None:
    build, settings = SHAPES[shape]
    header = read_header(resolve(str(build(tmp_path / "model", **settings))))
    units = stream_units(header)
    plan = stream_plan(header, "none", units, "cpu", positions=(1, 1), tokens=(64, 0))
    # Reading takes longer than computing then, so five passes and one more are six. Passes in
    # float32, of float32 weights and of experts, have few near-ties.
    assert plan.batch_passes == passes


def test_the_residency_changes_no_key(mixtral_folder: Path, tmp_path: Path) -> None:
    runs = [planned(mixtral_folder, tmp_path, name) for name in ("auto", "resident", "streamed")]
    assert len({run.key for run in runs}) == 1
    assert len({tuple(step.key for step in run.keys) for run in runs}) == 1
    assert len({run.digests["numerics"] for run in runs}) == 3


def test_auto_streams_a_model_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "model", layers=40, hidden=512)  # 340 MB
    free(monkeypatch, 2_000_000_000)
    assert residency_of(planned(folder, tmp_path, "auto")).chosen == "resident"
    free(monkeypatch, 1_150_000_000)
    run = planned(folder, tmp_path, "auto")
    assert residency_of(run).chosen == "streamed"
    assert residency_of(run).reason == "the model does not fit into the free memory"
    assert run.action == "start"
    assert planned(folder, tmp_path, "resident").action == "blocked"


@pytest.mark.parametrize(
    ("step", "where", "reason"),
    [
        ("{strategy: mine, search: gradient}", "8:31", "needs gradients"),
        ("{strategy: mine}", "8:14", "needs gradients"),
        ("{strategy: profile}", "8:14", "measures the weights in memory"),
    ],
)
def test_steps_that_need_the_whole_model_are_refused(
    step: str, where: str, reason: str, llama_folder: Path, tmp_path: Path
) -> None:
    text = f"\n  - {step}\n"
    with pytest.raises(InvalidSpec) as caught:
        planned(llama_folder, tmp_path, "streamed", text)
    (problem,) = caught.value.problems
    assert problem.code == "GR314"
    assert reason in problem.message
    run = planned(llama_folder, tmp_path, "auto", text)
    assert reason in residency_of(run).refusal
    assert residency_of(run).chosen == "resident"


def test_families_that_scale_or_norm_elsewhere_are_refused_by_the_plan(llama_folder: Path) -> None:
    header = read_header(resolve(str(llama_folder)))
    assert why_not_streamable(header) is None
    granite = replace(header, architecture="GraniteForCausalLM")
    assert "GraniteForCausalLM does not have the layers" in (why_not_streamable(granite) or "")
    norms_after = {k: v for k, v in header.tensors.items() if "input_layernorm" not in k}
    assert why_not_streamable(replace(header, tensors=norms_after)) is not None


def test_layers_of_other_kinds_are_refused_by_the_plan(tmp_path: Path) -> None:
    folder = tiny_models.tiny_gpt2(tmp_path / "model")
    run = planned(folder, tmp_path, "streamed")
    assert run.action == "blocked"
    assert "spec.yaml:5:" in run.reason
    assert "the model cannot be streamed: GPT2LMHeadModel" in run.reason
