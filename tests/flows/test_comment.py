import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.api import DVCFileSystem
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from flows.comment import CUT, Side, comment, here_in, main_at
from flows.markdown import code
from pipeline import gates
from pipeline.errors import InputError
from tests.clones import ROOT

JSON = ("reports/metrics.json", "bundle/contract.json", "prepared/quality.json", "data/manifest.json")
SLICES, ROC = "reports/tables/slices.csv", "reports/curves/roc.csv"
READ = (*JSON, SLICES, "reports/curves/calibration.csv", "reports/tables/waiting.csv", "params.yaml", "dvc.lock")
RUN = "https://github.com/org/repo/actions/runs/1"
INSPECTED, LOCK = "inspection/gates.json", "dvc.lock"
Files = dict[str, bytes]


def told(**changed: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict of an inspection that every gate has passed, but for what is changed by gate."""
    passed = {"passed": True, "value": 0.75, "bound": "at least", "limit": 0.6, "reason": "as it was found"}
    verdicts = [
        {"gate": name, **passed, "waived": None, **changed.get(name, {})} for name in gates.names(gates.INSPECTION)
    ]
    airworthy = all(gate["passed"] or gate["waived"] for gate in verdicts)
    return {"airworthy": airworthy, "bundle": "ab" * 32, "gates": verdicts}


def with_verdict(files: Files, verdict: Mapping[str, Any]) -> Files:
    """The files with a verdict on their dvc.lock."""
    return files | {INSPECTED: json.dumps({**verdict, LOCK: sha256(files[LOCK]).hexdigest()}).encode()}


def changed(files: Files, name: str, change: Callable[[Any], object]) -> Files:
    """The files, one of them (JSON or YAML) with something changed in it."""
    content = yaml.safe_load(files[name])
    change(content)
    dump = json.dumps if name.endswith(".json") else yaml.safe_dump
    return with_verdict(files | {name: dump(content).encode()}, told())


def side(files: Files) -> Side:
    def read(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    return Side("a side", read)


def told_of(here: Files, main: Files) -> str:
    return comment(side(here), side(main), RUN)


def section(text: str, title: str) -> str:
    """What stands under a title."""
    return (text + "\n### ").partition(f"\n### {title}\n")[2].partition("\n### ")[0]


def cells(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def main() -> Files:
    """What the last commit of this repository records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        recorded = DVCFileSystem(rev="HEAD")
        files = {name: recorded.read_bytes(name) for name in READ if recorded.exists(name)}
    return with_verdict(files, told())


@pytest.fixture(scope="module")
def here(main: Files) -> Files:
    """The same, made by a stage of which one input differs, so that everything is told."""
    return changed(main, LOCK, lambda lock: lock["stages"]["train"]["deps"][0].update(md5="another"))


def test_every_metric_and_its_interval_stand_there_as_in_the_reports(here: Files, main: Files) -> None:
    figures = json.loads(main["reports/metrics.json"])["model"]
    rows = [cells(line) for line in section(told_of(here, main), "Metrics").splitlines() if line.startswith("| `")]
    assert {name.partition("`")[0] for name, *_ in rows} == set(figures)
    assert rows[0][0].partition("`")[0] == yaml.safe_load(main["params.yaml"])["evaluate"]["metric"]
    for name, theirs, ours, change in rows:
        estimate = figures[name.partition("`")[0]]
        shown = [float(each) for each in re.findall(r"[-\d.e]+", ours.replace(",", ""))]
        assert shown == pytest.approx([estimate[end] for end in ("value", "low", "high")], rel=1e-3)
        assert (theirs, float(change)) == (ours, 0)


def test_the_worst_slices_stand_there_as_in_the_reports(here: Files, main: Files) -> None:
    metric = yaml.safe_load(main["params.yaml"])["evaluate"]["metric"]
    judged = [row for row in csv.DictReader(main[SLICES].decode().splitlines()) if row["judged"] == "True"][:5]
    rows = [cells(line) for line in section(told_of(here, main), "Worst slices").splitlines() if "(" in line]
    assert [row[0] for row in rows] == [code(row["slice"]).strip("`") for row in judged]
    for (_, count, theirs, ours), row in zip(rows, judged, strict=True):
        assert int(count.replace(",", "")) == int(row["rows"])
        assert float(ours.split()[0].replace(",", "")) == pytest.approx(float(row[metric]), rel=1e-3)
        assert theirs == ours


def test_every_gate_that_passed_is_folded_in_with_its_figure(here: Files, main: Files) -> None:
    text = told_of(with_verdict(here, told(floor={"value": 0.62197, "limit": 0.6})), main)
    assert text.startswith("## 🟢 AIRWORTHY\n")
    folded = section(text, "Gates").partition("<details>")[2]
    assert "| `floor` | 0.622 | ≥ 0.6 | `as it was found` |" in folded
    assert folded.count("\n| `") == len(gates.INSPECTION)


def test_a_gate_that_failed_grounds_the_model_and_is_open(here: Files, main: Files) -> None:
    failed = {"passed": False, "value": 0.58, "reason": "roc auc 0.65 (0.58 to 0.72)"}
    text = told_of(with_verdict(here, told(floor=failed, schema={"passed": False})), main)
    assert text.startswith("## 🔴 GROUNDED by `schema`, `floor`\n")
    opened = section(text, "Gates").partition("<details>")[0]
    assert "- `floor` 🔴 **FAILED**: 0.58, limit ≥ 0.6: `roc auc 0.65 (0.58 to 0.72)`" in opened


def test_a_waived_gate_is_named_in_red(here: Files, main: Files) -> None:
    waived = {"passed": False, "waived": "the machine comes in May"}
    text = told_of(with_verdict(here, told(latency=waived)), main)
    assert text.startswith("## 🟢 AIRWORTHY · 🔴 WAIVED: `latency`\n")
    assert "- `latency` 🔴 **FAILED**, 🔴 **WAIVED** (`the machine comes in May`)" in section(text, "Gates")


def test_a_gate_that_main_has_and_the_pull_request_removed_grounds_it(here: Files, main: Files) -> None:
    verdict = told()
    verdict["gates"] = [gate for gate in verdict["gates"] if gate["gate"] != "leak"]
    assert told_of(with_verdict(here, verdict), main).startswith("## 🔴 GROUNDED by `leak (missing)`\n")


@pytest.mark.parametrize(
    "verdict",
    [
        {**told(), "dvc.lock": "another"},
        {**told(floor={"passed": False}), "airworthy": True},
        {**told(), "airworthy": False},
        {**told(floor={"passed": "yes"}), "airworthy": True},
    ],
)
def test_a_verdict_that_is_of_another_model_or_contradicts_itself_is_none(
    verdict: dict[str, Any], here: Files, main: Files
) -> None:
    files = with_verdict(here, verdict) if LOCK not in verdict else here | {INSPECTED: json.dumps(verdict).encode()}
    assert told_of(files, main).startswith("## ⚪ COULD NOT BE INSPECTED: its verdict is of another")


def test_the_duel_is_told_with_its_interval(here: Files, main: Files) -> None:
    said = "roc_auc +0.012 (-0.004 to 0.029) against model/v4, on 28,635 rows that neither has seen"
    text = told_of(with_verdict(here, told(champion={"reason": said})), main)
    assert f"Duel with the champion: `{said}`" in section(text, "Metrics")


def test_figures_on_other_test_rows_are_said_to_be(here: Files, main: Files) -> None:
    def other(lock: Any) -> None:
        out = next(out for out in lock["stages"]["preprocess"]["outs"] if out["path"] == "prepared/test.parquet")
        out["md5"] = "another"

    assert "Both on the same test rows." in told_of(here, main)
    assert "Each on test rows of its own." in told_of(changed(here, LOCK, other), main)


def test_new_data_is_told_by_period_and_by_column(here: Files, main: Files) -> None:
    column = json.loads(main["bundle/contract.json"])["inputs"][0]["name"]

    def retyped(contract: Any) -> None:
        contract["inputs"][0]["kind"] = "odd"
        contract["inputs"][0]["categories"] = ["never seen"]

    def drifted(quality: Any) -> None:
        quality["columns"][column]["null_share"] = 0.375
        quality["columns"]["brand_new"] = {"kind": "number", "null_share": 0.0}
        quality["splits"]["test"]["rows"] = 77

    period = {"rows": 12_345, "quarantined": 3, "reasons": {}, "sha256": "cd" * 32}
    files = changed(here, "bundle/contract.json", retyped)
    files = changed(files, "prepared/quality.json", drifted)
    files = changed(files, "data/manifest.json", lambda manifest: manifest["periods"].update({"2099-01": period}))
    rows = sum(each["rows"] for each in json.loads(main["data/manifest.json"])["periods"].values())
    text = section(told_of(files, main), "Data")
    assert "| `2099-01` |  | `12,345 rows, 3 quarantined, hash cdcdcdcd` |" in text
    assert f"| `all` | `{rows:,} rows` | `{rows + 12_345:,} rows` |" in text
    for line in [f"| `{column}: kind` |", f"| `{column}: never seen` |", "| `brand_new: kind` |  | `number` |"]:
        assert line in text
    assert re.search(rf"\| `{column}: null_share` \| `[\d.]+` \| `0.375` \|", text)
    assert re.search(r"\| `test.rows` \| `\d+` \| `77` \|", text)


def test_changed_params_are_told_with_both_values_and_stages_with_what_changed(here: Files, main: Files) -> None:
    old = yaml.safe_load(main["params.yaml"])["train"]["seed"]
    text = told_of(changed(here, "params.yaml", lambda params: params["train"].update(seed=999)), main)
    assert section(text, "Params").splitlines()[-1] == f"| `train.seed` | `{old}` | `999` |"
    dependency = yaml.safe_load(main[LOCK])["stages"]["train"]["deps"][0]["path"]
    assert section(text, "Stages").strip() == f"- `train`: `{dependency}`"


def test_where_nothing_that_makes_the_model_differs_the_comment_is_short(main: Files) -> None:
    text = told_of(changed(main, "params.yaml", lambda params: params["inspect"].update(size_mb=999)), main)
    assert re.findall(r"(?m)^### (.+)$", text) == ["Gates", "Params"]
    assert "`dvc.lock` is that of main" in text


def test_a_curve_is_drawn_beside_that_of_main_where_they_differ(here: Files, main: Files) -> None:
    file, curve = "reports/tables/waiting.csv", b"age_months,loss\n1,0\n2,0.5\n3,1\n"
    for theirs, drawn in ((curve, "🟦 here"), (curve.replace(b"0.5", b"0.25"), "🟦 here, 🟧 main"), (b"", "🟦 here")):
        text = section(told_of(here | {file: curve}, main | {file: theirs}), "Pictures")
        picture = text.partition(f"**What waiting costs**: {drawn}\n")[2].splitlines()
        axes = ['x-axis "age months" 1.00000 --> 3.00000', "y-axis 0.00000 --> 1.00000"]
        assert picture[picture.index("xychart-beta") + 1 :][:2] == axes
        lines = [json.loads(line.removeprefix("line ")) for line in picture if line.startswith("line ")]
        assert [(len(line), line[0], line[-1]) for line in lines] == [(21, 0, 1)] * drawn.count("🟦") + [
            (21, 0, 1)
        ] * drawn.count("🟧")
        assert lines[0][10] == 0.5


def test_without_a_model_in_main_that_is_said_and_nothing_is_compared(
    here: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", "before any model"]):
        subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *command], check=True)
    text = comment(side(here), main_at("HEAD"), RUN)
    assert "beside nothing: main has no model yet." in text
    assert not {"Data", "Params", "Stages"} & set(re.findall(r"(?m)^### (.+)$", text))
    assert "### Metrics\n\n| metric" in text
    assert "not read" not in text


def test_a_run_that_left_nothing_is_linked(main: Files, tmp_path: Path) -> None:
    text = comment(here_in(tmp_path / "none"), side(main), RUN)
    assert text.startswith(f"## ⚪ COULD NOT BE INSPECTED\n\nNo verdict that can be read came of [the run]({RUN}).\n")
    assert "`inspection/gates.json` (`FileNotFoundError: not there`)" in text
    assert "### " not in text


@pytest.mark.parametrize("name", [*READ, INSPECTED])
def test_a_file_of_any_other_shape_costs_a_line_and_no_more(name: str, here: Files, main: Files) -> None:
    for content in (
        b"",
        b"[]",
        b"null",
        b"\xff\x00",
        b'{"model": 3, "stages": [], "gates": {}, "inputs": 1}',
        b"a,b\n1",
    ):
        for text in (told_of(here | {name: content}, main), told_of(here, main | {name: content})):
            assert re.match("## (🟢 AIRWORTHY|⚪ COULD NOT BE INSPECTED)", text)


def test_figures_that_are_no_numbers_are_not_taken_for_any(here: Files, main: Files) -> None:
    def spoil(metrics: Any) -> None:
        for end, value in zip(("value", "low", "high"), (float("nan"), None, 10**400), strict=True):
            next(iter(metrics["model"].values()))[end] = value

    text = told_of(changed(here, "reports/metrics.json", spoil), main)
    assert "n/a (n/a to n/a)" in section(text, "Metrics")
    curve = b"false_positive_rate,true_positive_rate\n0,0\nnan,1\n"
    assert "expected numbers that can be drawn" in section(told_of(here | {ROC: curve}, main), "Pictures")


NASTY = [
    *("canary", "|", "\n", "\r\n\r\n", "\u2028", "`", "``", "\\", "@org/team ", "#12 ", "GH-1", "$x$", ":tada:"),
    *("<b>", "<!--", "-->", "</details>", "http://canary.example/ ", "www.canary.example", "a@canary.example"),
    *("[canary](http://x.example)", "![](http://x.example/y)", "&#64;", "# canary", "```mermaid", "- canary", "---"),
    *("\u202e", "\x00", "\ud800", "*", "_", "  "),
]


@given(st.lists(st.sampled_from(NASTY) | st.text(max_size=20), max_size=12).map("".join))
def test_whatever_a_stranger_writes_is_shown_as_text(nasty: str) -> None:
    lines = [
        f"| {code(nasty)} | {code([nasty])} |",
        "| --- | --- |",
        f"| {code({nasty: 1})} | x |",
        "",
        f"- {code(nasty)}: y",
    ]
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse("\n".join(lines))
    inline = [child for token in tokens for child in token.children or []]
    assert [token.type for token in tokens].count("tr_open") == 2
    assert [token.type for token in tokens].count("td_open") == 2
    assert {child.type for child in inline} == {"code_inline", "text"}
    assert [child.content for child in inline if child.type == "text" and child.content] == ["x", ": y"]
    assert all(child.content.isprintable() and len(child.content) < 400 for child in inline)


@pytest.mark.parametrize(
    "text", ["| canary\n\n# canary `@canary` <!-- ", "</details><img src=//canary>@canary [canary](//canary)"]
)
def test_no_file_of_a_stranger_gets_text_out_of_the_code_spans(text: str, here: Files, main: Files) -> None:
    metric = {"value": 0.5, "low": 0.4, "high": 0.6}
    spoilt: dict[str, Callable[[Any], object]] = {
        "reports/metrics.json": lambda file: file["model"].update({text: metric}),
        "data/manifest.json": lambda file: file["periods"].update(
            {text: {"rows": 1, "quarantined": 0, "sha256": text}}
        ),
        "prepared/quality.json": lambda file: [
            file[part].update({text: {"kind": text}}) for part in ("columns", "splits")
        ],
        "bundle/contract.json": lambda file: file["inputs"].append({"name": text, "kind": text, "categories": [text]}),
        "params.yaml": lambda file: file.update({text: text, "evaluate": {"metric": text}}),
        LOCK: lambda file: file["stages"].update({text: {"cmd": text, "deps": [{"path": text, "md5": text}]}}),
    }
    files = here | {SLICES: b"slice,rows,judged\n" + json.dumps(text).encode() + b",5,True\n"}
    for name, change in spoilt.items():
        files = changed(files, name, change)
    verdict = told(floor={"passed": False, "reason": text, "waived": text}, schema={"passed": text, "gate": text})
    shown = told_of(with_verdict(files, verdict | {"bundle": text}), main)
    told_in = re.findall(r"(?ms)^##+ (.+?)\n(.+?)(?=\n##|\Z)", shown)
    assert {title for title, said in told_in[1:] if "canary" not in said} <= {"Pictures"}
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(shown)
    inline = [child for token in tokens for child in token.children or [] if child.type != "code_inline"]
    assert not [child for child in inline if "canary" in child.content or "canary" in str(child.attrs)]
    assert not [token for token in tokens if token.type in ("html_block", "fence") and "canary" in token.content]
    assert {child.attrs["href"] for child in inline if child.type == "link_open"} == {RUN}


def test_a_comment_that_is_too_long_is_cut_before_a_section_and_says_so(here: Files, main: Files) -> None:
    long = {f"{number}{'x' * 1000}": "x" * 1000 for number in range(100)}
    files = changed(here, "params.yaml", lambda params: params.update(long))
    files = changed(files, "prepared/quality.json", lambda quality: quality["splits"].update(long))
    columns = {name: {"kind": name} for name in long}
    files = changed(files, "prepared/quality.json", lambda quality: quality["columns"].update(columns))
    verdict = told(**{name: {"waived": "x" * 1000, "reason": "x" * 1000} for name in gates.names(gates.INSPECTION)[1:]})
    verdict["gates"] += [{**verdict["gates"][1], "gate": name} for name in long]
    text = told_of(with_verdict(files, verdict), main)
    assert len(text) < 65_536
    assert text.endswith(CUT)
    assert text.startswith("## 🟢 AIRWORTHY")
    assert text.count("<details>") == text.count("</details>") > 0
    assert "### Pictures" not in text


def test_nothing_outside_of_the_folder_is_read_and_nothing_huge(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"evaluate": "secret"}')
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "params.yaml").symlink_to(tmp_path / "secret.json")
    (folder / LOCK).write_bytes(b" " * 5_000_001)
    found = here_in(folder)
    assert (found.get("params.yaml"), found.get(LOCK)) == ({}, {})
    assert "expected at most 5,000,000 bytes" in found.wrong[LOCK]


def test_a_few_lines_of_yaml_that_mean_a_billion_values_are_refused() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    found = side({"params.yaml": bomb.encode()})
    assert found.get("params.yaml") == {}
    assert "expected no aliases" in found.wrong["params.yaml"]


def test_the_side_of_main_is_read_from_its_commit_and_the_remote(main: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = main_at("HEAD")
    assert found.get("reports/metrics.json") == json.loads(main["reports/metrics.json"])
    assert found.get("no/such.json") == {}
    assert [*found.wrong] == ["no/such.json"]


def test_an_unknown_revision_is_an_error() -> None:
    with pytest.raises(InputError, match="expected `git rev-parse"):
        main_at("no-such-branch")


def test_the_program_prints_the_comment_or_writes_it_and_ends_with_2_where_it_cannot(
    here: Files, tmp_path: Path
) -> None:
    for name, content in here.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(content)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/src"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.comment", "--here", str(tmp_path / "run"), *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    printed = run("--against", "HEAD")
    assert printed.stdout.startswith("## 🟢 AIRWORTHY\n\nBundle `abababababab` beside main at `")
    written = run("--against", "HEAD", "--output", str(tmp_path / "comment.md"))
    assert (written.returncode, written.stdout) == (0, "")
    assert (tmp_path / "comment.md").read_text() == printed.stdout
    refused = run("--against", "no-such-branch")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("comment: expected `git rev-parse")
