"""Calls of a model's own forward pass: arguments, errors and cache rows."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glitchrun.errors import PreflightError, RunError
from glitchrun.model import load
from glitchrun.model.loaded import LoadedModel
from glitchrun.probing import memory_limits
from glitchrun.probing.backend import Backend
from glitchrun.probing.backend_selection import best_backend
from glitchrun.probing.logit_statistics import entropy
from glitchrun.probing.model_call import ModelCall, select_rows
from glitchrun.spec.types import ModelSpec
from tests.support.engine import CACHE


@pytest.fixture
def model(llama_folder: Path) -> LoadedModel:
    return load(ModelSpec(str(llama_folder)), CACHE)


def failing(error: Exception) -> Any:
    def forward(input_ids: Any = None, **_: Any) -> Any:
        raise error

    return forward


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        NotImplementedError("no kernel for this device"),
        IndexError("index out of range in self"),
        KeyError("full_attention"),
        TypeError("topk(): argument 'k' must be int, not NoneType"),
        AssertionError("only in training"),
    ],
)
def test_an_error_of_the_model_is_reported_with_a_remedy(
    model: LoadedModel, error: Exception
) -> None:
    backend = Backend(model)
    model.module.forward = failing(error)
    passes = (
        lambda: backend.logits_alone([3, 4]),
        lambda: backend.step(torch.tensor([[3, 4]]), None),
        lambda: backend.gradient([3, 4], 1, entropy),
        lambda: best_backend(model),
    )
    for run in passes:
        with pytest.raises(RunError) as caught:
            run()
        assert type(error).__name__ in str(caught.value)
        assert "test_probing_model_call.py:" in str(caught.value)
        assert "model.quantization: float32" in str(caught.value)
        assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")],
)
def test_an_out_of_memory_error_passes_unchanged(model: LoadedModel, error: Exception) -> None:
    backend = Backend(model)
    model.module.forward = failing(error)
    with pytest.raises(type(error), match="memory") as caught:
        backend.logits_alone([3, 4])
    assert caught.value is error


def test_an_error_of_our_own_keeps_its_traceback(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ours(*_: Any) -> Any:
        raise TypeError("a mistake")

    monkeypatch.setattr("glitchrun.probing.backend.check_finite", ours)
    with pytest.raises(TypeError, match="a mistake"):
        Backend(model).last_logits([3], torch.tensor([[4]]))
    # A layer that glitchrun put into the model is glitchrun's own code as well.
    wrong = compile("def forward(**_): raise KeyError('a mistake')", memory_limits.__file__, "exec")
    names: dict[str, Any] = {}
    exec(wrong, names)
    model.module.forward = lambda input_ids=None, **_: names["forward"]()
    with pytest.raises(KeyError, match="a mistake"):
        Backend(model).logits_alone([3, 4])


def test_a_fast_path_that_does_not_fit_is_not_used(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some families rotate each layer differently: the same modules take other arguments."""

    def turned(*_: Any) -> Any:
        raise TypeError("forward() missing 1 required positional argument: 'layer_type'")

    monkeypatch.setattr("glitchrun.probing.fast.forward.rotation_of", turned)
    backend, why = best_backend(model)
    assert type(backend) is Backend
    assert "the fast path does not fit it (TypeError: forward() missing" in why


def test_a_model_that_takes_no_token_ids_is_refused() -> None:
    def codes(input_values: Any) -> Any:
        return input_values

    with pytest.raises(PreflightError, match="takes no token ids"):
        ModelCall(SimpleNamespace(forward=codes))


def test_logits_of_another_shape_are_refused(model: LoadedModel) -> None:
    backend = Backend(model)
    model.module.forward = lambda input_ids=None, **_: SimpleNamespace(logits=torch.ones(4, 9))
    with pytest.raises(PreflightError, match="not return next-token logits for each row"):
        backend.logits_alone([3, 4])


def test_rows_of_any_cache_can_be_selected() -> None:
    """Lists, dictionaries and tuples of tensors, which the model overwrites afterwards."""
    shared = torch.arange(6.0).view(3, 2)
    cache = {"a": [shared, torch.tensor([7.0])], 1: (shared, None, 5)}
    taken = select_rows(cache, torch.tensor([2, 0, 0, 1]), 3)
    assert taken["a"][0].tolist() == [[4, 5], [0, 1], [0, 1], [2, 3]]
    assert taken["a"][1].tolist() == [7]
    assert taken[1][0] is taken["a"][0]
    assert taken[1][1:] == (None, 5)
    taken["a"][0].zero_()
    taken["a"][1].zero_()
    assert shared.sum() == 15
    assert cache["a"][1].tolist() == [7]


@pytest.mark.parametrize("name", ["past_key_values", "cache", "cache_params"])
def test_a_cache_is_found_under_each_of_its_names(name: str) -> None:
    """transformers 5.24 renamed `past_key_values` to `cache`."""

    class Model(torch.nn.Module):
        """Returns what it was given as its cache."""

        def forward(self, input_ids: Any, use_cache: bool = False, **given: Any) -> Any:
            logits = torch.zeros(*input_ids.shape, 5)
            return SimpleNamespace(logits=logits, **{name: given.get(name, "new")})

    def forward(self: Any, input_ids: Any, use_cache: bool = False, renamed: Any = None) -> Any:
        """The signature that is inspected."""

    parameters = inspect.signature(forward).parameters.values()
    named = [one.replace(name=name) if one.name == "renamed" else one for one in parameters]
    Model.forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    call = ModelCall(Model())
    ids = torch.tensor([[1, 2]])
    assert call(ids, use_cache=True)[1] == "new"
    assert call(ids, "old", use_cache=True)[1] == "old"


def test_a_prefix_that_left_no_cache_is_not_forgotten(model: LoadedModel) -> None:
    backend = Backend(model)  # as for a model that returns a cache
    backend._call._cache_name = None
    with pytest.raises(RunError, match="returned no cache"):
        backend.start([3, 4], 2)
