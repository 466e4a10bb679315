"""The names of a matrix' cells."""

from __future__ import annotations

import pytest

from glitchrun.spec.cell_names import cell_names, value_texts
from glitchrun.spec.matrix_axes import canonical


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["a/model", "b/model", "c/other"], ["a/model", "b/model", "other"]),
        (["x/a/model", "y/a/model", "z/b/model"], ["x/a/model", "y/a/model", "b/model"]),
        (["/model", "a/model"], ["/model", "a/model"]),
        (["a/model", "a/model/", "./a/model"], ["a/model", "a/model/", "./a/model"]),
        (["/", "org/7b"], ["/", "7b"]),
        (["model", "a/model"], ["model", "a/model"]),
        ([1, "1", True, "true", None], ["1", '"1"', "true", '"true"', "null"]),
        ([[1, 2], {"b": "é"}], ["[1, 2]", '{"b": "é"}']),
    ],
)
def test_different_values_have_different_short_texts(
    values: list[object], texts: list[str]
) -> None:
    found = value_texts([*values, *values])
    assert [found[canonical(value)] for value in values] == texts


def test_cells_are_named_apart() -> None:
    both = [{"model.path": f"{folder}/m", "seed": seed} for folder in "ab" for seed in (0, 1)]
    assert cell_names(both) == [
        "path=a/m, seed=0", "path=a/m, seed=1", "path=b/m, seed=0", "path=b/m, seed=1",
    ]  # fmt: skip
    assert cell_names([{"a.id": 1, "b.id": 2}, {}]) == ["a.id=1, b.id=2", ""]
    lines = cell_names([{"system": "a\n::error::b\x7f"}, {"system": "a\t"}])
    assert lines == [r"system=a\n::error::b\x7f", r"system=a\t"]
    ends = cell_names([{"system": "x" * 70 + end} for end in "12"])
    assert ends == [f"system={'x' * 29}…{'x' * 29}{end}" for end in "12"]
    middles = cell_names([{"system": "x" * 70 + middle + "x" * 70} for middle in "12"])
    assert middles == [f"system={'x' * 59}… #1", f"system={'x' * 59}… #2"]
