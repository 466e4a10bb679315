"""Recognizes layers of the Llama shape by how their modules are put together, never by a name.

Llama (Touvron et al. 2023, arXiv 2302.13971): RMS norm, rotary grouped-query attention and a gated
MLP, each added to the residual stream. Mistral, SmolLM and Qwen 2 and 3 are that (with biases,
norms of queries and keys, windows); Mixtral (arXiv 2401.04088) has experts for the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_ATTENTION_NORMS = {"q_norm", "k_norm"}
_DENSE = {"gate_proj", "up_proj", "down_proj"}
_EXPERTS = {"gate", "experts"}


class OtherShapeError(Exception):
    """The model is not of this shape; the text says what is different."""


@dataclass(frozen=True, eq=False, slots=True)
class Norm:
    """RMS norm: weight (H,) and the number added to the mean square."""

    weight: Tensor
    epsilon: float


@dataclass(frozen=True, eq=False, slots=True)
class Attention:
    """Projections to `heads` queries and `groups` keys and values of `width` numbers, and back."""

    q: Any
    k: Any
    v: Any
    o: Any
    q_norm: Norm | None
    k_norm: Norm | None
    heads: int
    groups: int
    width: int
    scale: float
    window: int | None
    """Positions that a query sees, itself included; None for all before it."""


@dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """down(act(gate(x)) * up(x))."""

    gate: Any
    up: Any
    down: Any
    act: Callable[[Tensor], Tensor]
    size: int
    """Numbers between the projections."""
    silu: bool
    """Whether `act` is SiLU, which torch can do in place."""


@dataclass(frozen=True, eq=False, slots=True)
class Experts:
    """A router (E, H) that gives each position `chosen` of the experts."""

    router: Tensor
    experts: Any
    """Holds gate_up_proj (E, 2I, H) and down_proj (E, H, I), floats or QuantizedMatrices."""
    chosen: int
    act: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Dense | Experts


@dataclass(frozen=True, eq=False, slots=True)
class Shape:
    """A whole model on one device; modules and tensors are the model's own, nothing is copied."""

    embedding: Tensor
    """(V, H)"""
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """From any tensor of the arithmetic and positions (1, S) to cosines and sines (1, S, D)."""
    layers: tuple[Layer, ...]
    norm: Norm
    head: Any


def recognize(module: Any) -> Shape:
    """The parts of a transformers causal model of the Llama shape.

    What fits may still compute something else: `check.differences` compares the numbers.

    Raises:
        OtherShapeError: what does not fit.
    """
    decoder: Any = getattr(module, "model", None)
    _expect(decoder, {"embed_tokens", "layers", "norm", "rotary_emb"}, "the decoder")
    _all_here(module)
    return Shape(
        embedding=decoder.embed_tokens.weight,
        rotary=decoder.rotary_emb,
        layers=tuple(_layer(layer) for layer in decoder.layers),
        norm=_norm(decoder.norm),
        head=module.get_output_embeddings(),
    )


def _all_here(module: Any) -> None:
    devices = {str(tensor.device) for tensor in (*module.parameters(), *module.buffers())}
    if len(devices) > 1 or "meta" in devices:
        raise OtherShapeError(f"its weights are spread over {', '.join(sorted(devices))}")
    if any(hasattr(part, "_hf_hook") for part in module.modules() if part is not module):
        raise OtherShapeError("its weights are moved in and out of the device")


def _expect(module: Any, names: set[str], what: str, optional: Iterable[str] = ()) -> None:
    children = module.named_children() if isinstance(module, nn.Module) else ()
    found = {name for name, _ in children}
    if not names <= found <= names.union(optional):
        raise OtherShapeError(f"{what} is made of {', '.join(sorted(found)) or 'something else'}")


def _layer(layer: Any) -> Layer:
    _expect(layer, _LAYER, "a layer")
    return Layer(
        norm=_norm(layer.input_layernorm),
        attention=_attention(layer.self_attn),
        mlp_norm=_norm(layer.post_attention_layernorm),
        mlp=_mlp(layer.mlp),
    )


def _norm(module: Any) -> Norm:
    epsilon = getattr(module, "variance_epsilon", None)
    if epsilon is None or [name for name, _ in module.named_parameters()] != ["weight"]:
        raise OtherShapeError(f"{type(module).__name__} is no plain RMS norm")
    return Norm(module.weight, epsilon)


def _attention(module: Any) -> Attention:
    _expect(module, _ATTENTION, "attention", _ATTENTION_NORMS)
    if not all(hasattr(module, name) for name in ("head_dim", "scaling", "num_key_value_groups")):
        raise OtherShapeError(f"{type(module).__name__} does not say its heads")
    heads = _rows(module.q_proj) // module.head_dim
    return Attention(
        q=module.q_proj,
        k=module.k_proj,
        v=module.v_proj,
        o=module.o_proj,
        q_norm=_norm_of_heads(module, "q_norm"),
        k_norm=_norm_of_heads(module, "k_norm"),
        heads=heads,
        groups=heads // module.num_key_value_groups,
        width=module.head_dim,
        scale=module.scaling,
        window=_window(module),
    )


def _norm_of_heads(module: Any, name: str) -> Norm | None:
    if not hasattr(module, name):
        return None
    norm = _norm(getattr(module, name))
    if len(norm.weight) != module.head_dim:  # OLMoE's go over all heads together
        raise OtherShapeError(f"{name} is not of one head")
    return norm


def _window(module: Any) -> int | None:
    """Where only some layers have a window they say so themselves; else the config does."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    return getattr(module.config, "sliding_window", None)


def _rows(linear: Any) -> int:
    rows = getattr(linear, "out_features", None) or linear.matrices.rows
    return int(rows)


def _mlp(module: Any) -> Dense | Experts:
    names = {name for name, _ in module.named_children()}
    if names >= _DENSE:
        _expect(module, _DENSE, "the MLP", {"act_fn"})
        size = _rows(module.gate_proj)
        act = module.act_fn
        return Dense(module.gate_proj, module.up_proj, module.down_proj, act, size, _is_silu(act))
    _expect(module, _EXPERTS, "the MLP")
    router, experts = module.gate, module.experts
    if not (hasattr(router, "top_k") and hasattr(experts, "gate_up_proj")):
        raise OtherShapeError(f"{type(module).__name__} has experts of another kind")
    return Experts(router.weight, experts, router.top_k, experts.act_fn)


def _is_silu(act: Callable[[Tensor], Tensor]) -> bool:
    points = torch.linspace(-9, 9, 64)
    return torch.equal(act(points), nn.functional.silu(points))


def is_float(weight: Any) -> bool:
    """Whether a weight is a plain float tensor, not a quantized one."""
    return isinstance(weight, Tensor) and weight.dtype in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
    )
