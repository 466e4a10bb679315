"""Recognizes models of the Llama layout by their modules, never by a name.

Llama (Touvron et al. 2023, arXiv 2302.13971): RMS norm, rotary grouped-query attention and a gated
MLP, each added to the residual stream. Mistral, SmolLM, Qwen 2 and Qwen 3 have this layout, with
biases, norms of queries and keys, or windows. Mixtral (arXiv 2401.04088) has experts for the MLP.
Gemma (arXiv 2408.00118) has scaled embeddings, and from version 2 on norms after attention and
MLP, soft caps, and layers with windows, in version 3 with rotary embeddings of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_OUTPUT_NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_ATTENTION_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj"}
_EXPERTS = {"gate", "experts"}


class OtherLayoutError(Exception):
    """The model has another layout; the message says what is different."""


@dataclass(frozen=True, eq=False, slots=True)
class RmsNorm:
    """RMS norm: x / sqrt(mean(x²) + epsilon) * (offset + weight)."""

    weight: Tensor
    """`(H,)`, or `(D,)` for the norm of a head."""
    epsilon: float
    offset: float = 0.0


@dataclass(frozen=True, eq=False, slots=True)
class AttentionLayout:
    """Grouped-query attention: projections, norms of heads, and sizes."""

    q: Any
    """Linear layer from H to num_heads * head_dim."""
    k: Any
    """Linear layer from H to num_kv_heads * head_dim, as is `v`."""
    v: Any
    o: Any
    """Linear layer from num_heads * head_dim to H."""
    q_norm: RmsNorm | None
    k_norm: RmsNorm | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Factor of the attention scores."""
    window: int | None
    """Positions that a query attends to, itself included; None for all before it."""
    softcap: float | None = None
    """c in c * tanh(score / c); None for plain scores."""
    rope: str = ""
    """Which of the model's rotary embeddings the layer has."""
    out_norm: RmsNorm | None = None
    """The norm of what is added to the residual stream."""


@dataclass(frozen=True, eq=False, slots=True)
class MlpLayout:
    """Gated MLP: down(act(gate(x)) * up(x))."""

    gate: Any
    up: Any
    down: Any
    act: Callable[[Tensor], Tensor]
    intermediate_size: int
    is_silu: bool
    """Whether `act` is SiLU, which torch can compute in place."""
    out_norm: RmsNorm | None = None
    """The norm of what is added to the residual stream."""


@dataclass(frozen=True, eq=False, slots=True)
class ExpertsLayout:
    """A mixture of E experts, of which a router selects `top_k` per position."""

    router: Tensor
    """`(E, H)`"""
    experts: Any
    """A module with `gate_up_proj` `(E, 2I, H)` and `down_proj` `(E, H, I)`: float tensors or
    QuantizedMatrices."""
    top_k: int
    act: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class LayerLayout:
    """One decoder layer: attention and MLP, each after its norm."""

    norm: RmsNorm
    attention: AttentionLayout
    mlp_norm: RmsNorm
    mlp: MlpLayout | ExpertsLayout


@dataclass(frozen=True, eq=False, slots=True)
class LlamaLayout:
    """A whole model on one device. Modules and tensors are the model's own; nothing is copied."""

    embedding: Tensor
    """`(V, H)`"""
    rotary: Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]
    """From any tensor of the arithmetic, positions `(1, S)` and the name of a rotary embedding to
    cosines and sines `(1, S, D)`."""
    layers: tuple[LayerLayout, ...]
    norm: RmsNorm
    head: Any
    """Linear layer from H to V."""
    embedding_scale: float | None = None
    """Factor of the embeddings; None for 1."""
    softcap: float | None = None
    """c in c * tanh(logit / c); None for plain logits."""


def recognize(module: Any, *, empty: bool = False) -> LlamaLayout:
    """Returns the parts of a causal model of transformers that has the Llama layout.

    A model that fits may still compute something else: `backend_selection` compares the logits.

    Args:
        module: The model.
        empty: Whether its weights are on the device `meta`, to be filled layer by layer.

    Raises:
        OtherLayoutError: The model has another layout.
    """
    decoder: Any = getattr(module, "model", None)
    _expect(decoder, {"embed_tokens", "layers", "norm", "rotary_emb"}, "the decoder")
    if not empty:
        _expect_one_device(module)
    layers = tuple(recognize_layer(layer) for layer in decoder.layers)
    if _has_several_ropes(decoder.rotary_emb) and not all(one.attention.rope for one in layers):
        raise OtherLayoutError("a layer does not tell which rotary embedding it has")
    return LlamaLayout(
        embedding=decoder.embed_tokens.weight,
        rotary=_rotary(decoder.rotary_emb),
        layers=layers,
        norm=_norm(decoder.norm),
        head=module.get_output_embeddings(),
        embedding_scale=_embedding_scale(decoder.embed_tokens),
        softcap=getattr(module.config.get_text_config(), "final_logit_softcapping", None),
    )


def _rotary(module: Any) -> Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]:
    if _has_several_ropes(module):
        return lambda like, positions, name: module(like, positions, layer_type=name)
    return lambda like, positions, name: module(like, positions)


def _has_several_ropes(module: Any) -> bool:
    return "layer_type" in inspect.signature(module.forward).parameters


def _embedding_scale(module: Any) -> float | None:
    scale: Any = getattr(module, "embed_scale", None)
    if isinstance(scale, Tensor) and scale.device.type == "meta":
        scale = torch.tensor(module.scalar_embed_scale, dtype=scale.dtype)
    return None if scale is None else float(scale)


def _expect_one_device(module: Any) -> None:
    devices = {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())}
    if len(devices) > 1 or "meta" in devices:
        raise OtherLayoutError(f"its weights are spread over {', '.join(sorted(devices))}")
    if any(hasattr(part, "_hf_hook") for part in module.modules() if part is not module):
        raise OtherLayoutError("its weights are moved in and out of the device")


def _expect(module: Any, names: set[str], what: str, optional: Iterable[str] = ()) -> None:
    children = module.named_children() if isinstance(module, nn.Module) else ()
    found = {name for name, _ in children}
    if not names <= found <= names.union(optional):
        raise OtherLayoutError(f"{what} has {', '.join(sorted(found)) or 'no known modules'}")


def recognize_layer(layer: Any) -> LayerLayout:
    """Returns the parts of one decoder layer.

    Raises:
        OtherLayoutError: The layer has another layout.
    """
    _expect(layer, _LAYER, "a layer", _OUTPUT_NORMS)
    attention, mlp = _attention(layer.self_attn), _mlp(layer.mlp)
    post_norm, mlp_norm = (
        layer.post_attention_layernorm,
        getattr(layer, "pre_feedforward_layernorm", None),
    )
    if mlp_norm is None:
        return LayerLayout(_norm(layer.input_layernorm), attention, _norm(post_norm), mlp)
    if isinstance(mlp, ExpertsLayout):
        raise OtherLayoutError("its experts have a norm after them")
    return LayerLayout(
        norm=_norm(layer.input_layernorm),
        attention=replace(attention, out_norm=_norm(post_norm)),
        mlp_norm=_norm(mlp_norm),
        mlp=replace(mlp, out_norm=_norm(layer.post_feedforward_layernorm)),
    )


def _norm(module: Any) -> RmsNorm:
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if epsilon is None or [name for name, _ in module.named_parameters()] != ["weight"]:
        raise OtherLayoutError(f"{type(module).__name__} is not a plain RMS norm")
    return RmsNorm(module.weight, epsilon, _offset(type(module)))


def _offset(kind: Any) -> float:
    """What a kind of norm adds to its weights: its output for ones if the weights are 0."""
    try:
        norm = kind(4)
        with torch.no_grad():
            norm.weight.zero_()
            return round(float(norm(torch.ones(1, 4))[0, 0]), 3)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise OtherLayoutError(f"{kind} is not a plain RMS norm") from error


def _attention(module: Any) -> AttentionLayout:
    _expect(module, _ATTENTION, "attention", _ATTENTION_NORMS)
    if not all(hasattr(module, name) for name in ("head_dim", "scaling", "num_key_value_groups")):
        raise OtherLayoutError(f"{type(module).__name__} does not tell the sizes of its heads")
    num_heads = _out_features(module.q_proj) // module.head_dim
    return AttentionLayout(
        q=module.q_proj,
        k=module.k_proj,
        v=module.v_proj,
        o=module.o_proj,
        q_norm=_head_norm(module, "q_norm"),
        k_norm=_head_norm(module, "k_norm"),
        num_heads=num_heads,
        num_kv_heads=num_heads // module.num_key_value_groups,
        head_dim=module.head_dim,
        scale=module.scaling,
        window=_window(module),
        softcap=getattr(module, "attn_logit_softcapping", None),
        rope=getattr(module, "layer_type", None) or "",
    )


def _head_norm(module: Any, name: str) -> RmsNorm | None:
    if not hasattr(module, name):
        return None
    norm = _norm(getattr(module, name))
    if len(norm.weight) != module.head_dim:  # OLMoE's norms span all heads
        raise OtherLayoutError(f"{name} is not the norm of one head")
    return norm


def _window(module: Any) -> int | None:
    """The window of a layer: its own attribute if only some layers have one, else the config's."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    return getattr(module.config, "sliding_window", None)


def _out_features(linear: Any) -> int:
    return int(getattr(linear, "out_features", None) or linear.matrices.rows)


def _mlp(module: Any) -> MlpLayout | ExpertsLayout:
    names = {name for name, _ in module.named_children()}
    if names >= _MLP:
        _expect(module, _MLP, "the MLP", {"act_fn"})
        act = module.act_fn
        return MlpLayout(
            gate=module.gate_proj,
            up=module.up_proj,
            down=module.down_proj,
            act=act,
            intermediate_size=_out_features(module.gate_proj),
            is_silu=_is_silu(act),
        )
    _expect(module, _EXPERTS, "the MLP")
    router, experts = module.gate, module.experts
    if not (hasattr(router, "top_k") and hasattr(experts, "gate_up_proj")):
        raise OtherLayoutError(f"{type(module).__name__} has experts of another kind")
    return ExpertsLayout(router.weight, experts, router.top_k, experts.act_fn)


def linear(weight: Tensor) -> nn.Linear:
    """Returns a linear layer of a weight `(R, K)`, which is not copied."""
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def expert_of(experts: ExpertsLayout, gate: Tensor, up: Tensor, down: Tensor) -> MlpLayout:
    """Returns one expert as an MLP of its own, from gate and up `(I, H)` and down `(H, I)`."""
    act = experts.act
    return MlpLayout(linear(gate), linear(up), linear(down), act, len(gate), _is_silu(act))


def _is_silu(act: Callable[[Tensor], Tensor]) -> bool:
    points = torch.linspace(-9, 9, 64)
    return torch.equal(act(points), nn.functional.silu(points))
