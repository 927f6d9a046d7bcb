import dataclasses
import html
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving import page
from serving.release import Release
from serving.rows import Inputs, RowError, WrongValue
from serving.telemetry import Distribution
from tests.serving.made import TASKS, Bundle

HOSTILE = '<script>alert("1")</script>\'"&{{ 7 * 7 }}{% raw %} żółć 航班 \u202e'
NAMED = HOSTILE.replace('"', "")  # in no name of a column that is served
NAMES = {name: f"c{place}" for place, name in enumerate(
    ("read_at", "site", "maker", "measured_at", "temperature", "cycles", "guarded"))}  # fmt: skip
VOID = {"meta", "link", "input", "br"}


class Read(HTMLParser):
    """A page's elements, and whether each is closed in its turn."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.text = ""
        self.feed(content.decode())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag and wanted.items() <= attrs.items()]

    def field(self, name: str) -> dict[str, str | None]:
        """The input or select of a column."""
        return next(attrs for tag, attrs in self.found if tag in ("input", "select") and attrs.get("id") == NAMES[name])


@pytest.fixture(scope="session")
def release(made: Callable[[str], Bundle]) -> Release:
    return made("binary-onnx").load()


def answered(**changed: Any) -> dict[str, Any]:
    named = {"name": "model", "version": "v7", "hash": "f" * 64}
    told = {
        "scores": [0.25],
        "labels": [False],
        "source": "model",
        "unseen": [],
        "request_id": "request-1",
        "model": named,
    }
    return told | changed


def judged(release: Release, *gates: Mapping[str, Any], airworthy: bool = True, inspected: bool = True) -> Release:
    verdict = {"airworthy": airworthy, "bundle": release.hash, "gates": list(gates)}
    return dataclasses.replace(release, verdict=verdict, inspected=inspected)


def gate(name: str, **changed: Any) -> dict[str, Any]:
    told = {
        "gate": name,
        "passed": True,
        "value": 0.71234,
        "bound": "at least",
        "limit": 0.6,
        "reason": "it is",
        "waived": None,
    }
    return told | changed


@pytest.mark.parametrize("task", TASKS)
def test_the_form_asks_for_each_input_and_holds_the_example(made: Callable[[str], Bundle], task: str) -> None:
    release = made(f"{task}-onnx").load()
    read = Read(page.page(release))
    chosen = {attrs["id"]: attrs for tag, attrs in read.found if tag in ("input", "select")}
    assert list(chosen) == [*NAMES.values()]
    assert page.record(release.inputs, form_of(read)) == release.example


def form_of(read: Read) -> dict[str, str]:
    """What a browser would send."""
    form = {str(attrs["name"]): str(attrs["value"]) for attrs in read.all("input")}
    select = ""
    for tag, attrs in read.found:
        if tag == "select":
            select = str(attrs["name"])
        if tag == "option" and "selected" in attrs:
            form[select] = str(attrs["value"])
    return form


def test_each_kind_of_input_has_its_kind_of_field(release: Release) -> None:
    read = Read(page.page(release))
    kinds = {name: read.field(name).get("type", "select") for name in NAMES}
    assert kinds == {
        **{"read_at": "datetime-local", "site": "select", "maker": "text", "measured_at": "datetime-local"},
        **{"temperature": "number", "cycles": "number", "guarded": "select"},
    }
    limits = [{key: read.field(name).get(key) for key in ("min", "max", "step")} for name in ("temperature", "cycles")]
    assert limits == [{"min": "-50", "max": "150", "step": "any"}, {"min": "0", "max": "1000", "step": "1"}]
    assert {name for name in NAMES if "required" in read.field(name)} == {"read_at", "site", "cycles", "guarded"}
    known = {attrs["value"] for attrs in read.all("option")}
    assert {"acme", "bolt", "core", "north", "south", "true", "false"} <= known
    assert read.all("datalist", id=str(read.field("maker")["list"]))


def test_each_field_has_a_label_and_its_help(release: Release) -> None:
    read = Read(page.page(release, asks_key=True))
    ids = [attrs["id"] for _, attrs in read.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in read.found:
        if tag in ("input", "select"):
            assert read.all("label", **{"for": str(attrs["id"])}), attrs
            assert attrs["aria-describedby"] in ids
    assert "Its temperature, C" in read.text


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        ("temperature", "21.5", 21.5),
        ("temperature", "", None),
        ("temperature", "warm", "warm"),
        ("temperature", "nan", "nan"),
        ("temperature", "1e999", "1e999"),
        ("cycles", "7", 7.0),
        ("guarded", "true", True),
        ("guarded", "false", False),
        ("guarded", "maybe", "maybe"),
        ("maker", "5", "5"),
        ("maker", "", None),
        ("read_at", "2020-01-31T12:00", "2020-01-31T12:00:00"),
        ("read_at", "2020-01-31T12:00:01.250", "2020-01-31T12:00:01.250"),
        ("read_at", "soon", "soon"),
    ],
)
def test_what_is_entered_becomes_the_row_that_predict_gets(
    release: Release, column: str, text: str, value: Any
) -> None:
    found = page.record(release.inputs, {NAMES[column]: text})[column]
    assert (found, type(found)) == (value, type(value))


def test_what_is_empty_and_may_not_be_is_missing_from_the_row(release: Release) -> None:
    row = page.record(release.inputs, {})
    assert row == {"maker": None, "measured_at": None, "temperature": None}
    with pytest.raises(RowError) as refused:
        release.inputs.convert([row], 1)
    assert [error.column for error in refused.value.errors] == ["read_at", "site", "cycles", "guarded"]


def test_each_error_stands_at_its_field_and_what_was_entered_stays(release: Release) -> None:
    filled = {NAMES["temperature"]: "warm", NAMES["cycles"]: "-3", NAMES["maker"]: "bolt", NAMES["site"]: "east"}
    with pytest.raises(RowError) as refused:
        release.inputs.convert([page.record(release.inputs, filled)], 1)
    read = Read(page.page(release, filled=filled, errors=refused.value.errors, detail=str(refused.value)))
    wrong = {name for name in NAMES if read.field(name).get("aria-invalid") == "true"}
    assert wrong == {"temperature", "cycles", "site", "read_at", "guarded"}
    assert {f"#{NAMES[name]}" for name in wrong} <= {attrs["href"] for attrs in read.all("a")}
    assert [read.field(name)["value"] for name in ("temperature", "cycles", "maker")] == ["warm", "-3", "bolt"]
    assert "selected" in read.all("option", value="east")[0]
    assert "Expected one of north, south." in read.text
    assert "Expected a number from -50 to 150 (C), or nothing." in read.text


def test_an_error_of_no_field_is_told_too(release: Release) -> None:
    read = Read(page.page(release, errors=[WrongValue("an object")], detail="row 0: expected an object"))
    assert "expected an object" in read.text
    assert "expected a key" in Read(page.page(release, detail="expected a key")).text


def test_the_answer_says_what_when_and_by_whom(release: Release) -> None:
    unseen = [{"row": 0, "column": "maker"}]
    read = Read(page.page(release, filled={}, answer=answered(unseen=unseen, scores=[0.8125], labels=[True])))
    assert read.all("data", value="0.8125")
    for said in (
        "outcome: yes",
        "at or above the threshold",
        "v7",
        "request-1",
        "the model",
        "Training never saw this one",
    ):
        assert said in read.text


def test_the_answer_of_the_baseline_says_so_and_names_no_threshold(release: Release) -> None:
    read = Read(page.page(release, filled={}, answer=answered(source="baseline")))
    assert "the baseline, in place of the model" in read.text
    assert "below the threshold" not in read.text


def test_the_answer_of_several_classes_and_of_a_number(made: Callable[[str], Bundle]) -> None:
    classes, scores = ["broken", "fine", "worn"], [0.125, 0.625, 0.25]
    several = Read(page.page(
        made("multiclass-onnx").load(), filled={}, answer=answered(scores=[scores], labels=["fine"], classes=classes)
    ))  # fmt: skip
    assert [float(str(attrs["value"])) for attrs in several.all("data")][:3] == scores
    number = answered(scores=[-12.5])
    del number["labels"]
    assert Read(page.page(made("regression-onnx").load(), filled={}, answer=number)).all("data", value="-12.5")


@pytest.mark.parametrize(
    ("airworthy", "inspected", "word"),
    [(True, True, "airworthy"), (False, True, "grounded"), (False, False, "grounded"), (True, False, "not inspected")],
)
def test_the_verdict_stands_in_words_and_colour(release: Release, airworthy: bool, inspected: bool, word: str) -> None:
    read = Read(page.page(judged(release, gate("floor"), airworthy=airworthy, inspected=inspected)))
    assert read.all("div", **{"class": "tag"})[0]["data-verdict"] == word
    assert read.all("body")[0]["class"] == word.replace(" ", "-")


def test_without_any_verdict_it_is_not_inspected(release: Release) -> None:
    read = Read(page.page(dataclasses.replace(release, verdict=None, inspected=False)))
    assert read.all("div", **{"data-verdict": "not inspected"})
    assert "No inspection of this bundle was found" in read.text


def test_gates_show_their_figures_and_a_waived_one_is_red(release: Release) -> None:
    waived = gate("groups", passed=False, waived="The workshop agrees", reason="north 0.1, south 0.9")
    uncounted = gate("leak", passed=False, value=None, limit=None, bound=None, reason="could not be computed")
    content = page.page(judged(release, gate("floor"), waived, uncounted, {"gate": "bare", "passed": True}))
    read = Read(content)
    assert read.all("data", value="0.71234")
    assert len(read.all("tr", **{"class": "weak"})) == 2
    assert read.text.count("The workshop agrees") == 2
    assert "2 of 4 gates passed" in read.text


def test_the_card_is_shown_by_its_first_table_and_has_a_page(release: Release) -> None:
    card = "# Model card: Readings\n\n| | |\n| --- | --- |\n| Predicts | `outcome` |\n\n## Limits\n\nNone. ![x](http://a.test/x)\n"
    read = Read(page.page(release, card=card))
    assert "Predicts" in read.text
    assert "Limits" not in read.text
    assert read.all("a", href="card")
    whole = page.card_page(card, release)
    assert "Limits" in Read(whole).text
    assert resources(whole) == []
    assert "Readings" in Read(page.page(release, card="# Model card: Readings")).text


def test_the_card_is_believed_where_it_names_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert page.read_card(tmp_path / "bundle", "abc") is None
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "card.md").write_text("of the bundle `abc`")
    assert page.read_card(tmp_path / "bundle", "abc") == "of the bundle `abc`"
    assert page.read_card(tmp_path / "bundle", "def") is None


def hostile(release: Release) -> Release:
    """A release that says the worst wherever it may say something."""
    entries = [
        {**entry, "name": f"{entry['name']}{NAMED}", "description": HOSTILE, "unit": HOSTILE}
        | ({"categories": [HOSTILE, *entry["categories"]]} if "categories" in entry else {})
        for entry in release.contract["inputs"]
    ]
    said = {"inputs": entries, "target": HOSTILE, "noun": HOSTILE}
    scorer = dataclasses.replace(release.scorer, contract={**release.contract, **said})
    example = {f"{name}{NAMED}": value for name, value in release.example.items()}
    return dataclasses.replace(
        judged(release, gate(HOSTILE, reason=HOSTILE, waived=HOSTILE)),
        **{"name": HOSTILE, "scorer": scorer, "inputs": Inputs(entries), "example": example},
        lineage={HOSTILE: {HOSTILE: HOSTILE}, "code": HOSTILE, "list": [HOSTILE]},
    )


def test_hostile_text_stays_text_everywhere(release: Release) -> None:
    bad = hostile(release)
    filled = dict.fromkeys(NAMES.values(), HOSTILE)
    error = WrongValue(HOSTILE, 0, next(iter(bad.inputs.by_name)), HOSTILE)
    answer = answered(request_id=HOSTILE, source=HOSTILE, model={"version": HOSTILE}, unseen=[{"column": HOSTILE}])
    card = f"# {HOSTILE}\n\n| | |\n| --- | --- |\n| {HOSTILE} | [x](javascript:alert) |\n\n{HOSTILE}\n"
    contents = [
        page.page(bad, filled=filled, errors=[error, WrongValue(HOSTILE)], detail=HOSTILE, card=card),
        page.page(bad, filled=filled, answer=answer, asks_key=True),
        page.page(bad, detail=HOSTILE),
        page.card_page(card, bad),
        page.figures_page(page.Figures.read(busy(HOSTILE), bad.reference), bad),
    ]
    for content in contents:
        read = Read(content)
        assert read.all("script") == []
        assert not any(name.startswith("on") or name == "style" for _, attrs in read.found for name in attrs)
        assert not any("javascript:" in str(attrs.get("href")) for attrs in read.all("a"))
        assert "{{ 7 * 7 }}" in read.text
    assert all(HOSTILE in html.unescape(content.decode()) for content in contents[:3])


def resources(content: bytes) -> list[str]:
    """What a browser would fetch from elsewhere."""
    fetched = [(attrs.get("src"), attrs.get("action")) for _, attrs in Read(content).found]
    linked = [attrs["href"] for attrs in Read(content).all("link")]
    return [each for each in [*sum(fetched, ()), *linked] if each and re.match(r"(?!data:)[a-z]+:|//", each)]


def test_the_pages_ask_for_nothing_outside(release: Release) -> None:
    for content in (page.page(release), page.figures_page(page.Figures.read(busy(), release.reference), release)):
        assert resources(content) == []
        assert b"http://" not in content
        assert b"https://" not in content
        assert b"@import" not in content
        assert b"url(" not in content


def test_the_key_is_asked_for_and_never_given_back(release: Release) -> None:
    assert Read(page.page(release)).all("input", type="password") == []
    content = page.page(release, filled={"key": "secret-of-mine"}, asks_key=True, detail="no")
    field = Read(content).all("input", type="password")[0]
    assert (field["autocomplete"], field.get("value")) == ("off", None)
    assert b"secret-of-mine" not in content


def test_the_policy_lets_the_pages_own_style_in_and_nothing_else(release: Release) -> None:
    from base64 import b64encode
    from hashlib import sha256

    style = re.search(rb"<style>(.*?)</style>", page.page(release), re.DOTALL)
    assert style is not None
    assert f"'sha256-{b64encode(sha256(style[1]).digest()).decode()}'" in page.CSP
    assert "unsafe" not in page.CSP
    assert page.CSP.startswith("default-src 'none'; ")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", {}),
        (b"c0=&c1=a+b%26c&key=%C5%BC", {"c0": "", "c1": "a b&c", "key": "ż"}),
        (b"c0=%3Cscript%3E%00", {"c0": "<script>\0"}),
    ],
)
def test_a_form_is_read(body: bytes, fields: dict[str, str]) -> None:
    assert page.form_fields(body) == fields


@pytest.mark.parametrize("body", [b"\xff=1", b"c0=%FF", b'{"rows": []}', b"a=1&" * 20_000, b"&&"])
def test_nonsense_is_no_form(body: bytes) -> None:
    with pytest.raises(RowError, match="expected the fields of a form"):
        page.form_fields(body)


def busy(column: str = "maker") -> CollectorRegistry:
    """Metrics of a service that has seen much."""
    registry = CollectorRegistry()
    requests = Counter("serving_requests", "Requests", ["route", "status"], registry=registry)
    infer = "/v2/models/{name}/infer"
    for route, status, count in (("/predict", 200, 90), ("/predict", 422, 6), (infer, 503, 4), ("/figures", 200, 50)):
        requests.labels(route, str(status)).inc(count)
    seconds = Histogram("serving_request_seconds", "Time", ["route"], buckets=(0.001, 0.002, 5), registry=registry)
    for value, count in ((0.0005, 50), (0.0015, 40), (1, 10)):
        for _ in range(count):
            seconds.labels("/predict").observe(value)
    for _ in range(1000):
        seconds.labels("/figures").observe(10)
    for name, value in (("rows", 20), ("challenger_rows", 200), ("challenger_changed", 3), ("shadow_dropped", 5)):
        Counter(f"serving_{name}", name, registry=registry).inc(value)
    for name in ("breaker_open", "journal_failing", "last_good"):
        Gauge(f"serving_{name}", name, registry=registry).set(1)
    answers = Counter("serving_answers", "Answers", ["source"], registry=registry)
    for source, count in (("model", 75), ("baseline", 25)):
        answers.labels(source).inc(count)
    Counter("serving_model_failures", "Failures", ["reason"], registry=registry).labels("slow").inc(2)
    Counter("serving_unseen", "Unseen", ["column"], registry=registry).labels(column).inc(9)
    difference = Histogram("serving_challenger_difference", "Difference", registry=registry)
    difference.observe(0.25)
    difference.observe(0.75)
    return registry


def test_figures_of_a_service_that_has_done_nothing_are_zero(release: Release) -> None:
    figures = page.Figures.read(CollectorRegistry(), release.reference)
    assert (figures.requests, figures.total("serving_rows_total"), figures.errors, figures.bars) == (0, 0, {}, [])
    assert (figures.quantile_s(0.5), figures.mean("serving_challenger_difference")) == (None, None)
    text = Read(page.figures_page(figures, release)).text
    assert "No row has been compared" in text
    assert "the model answers" in text


def test_figures_are_those_of_the_metrics(release: Release) -> None:
    figures = page.Figures.read(busy(), release.reference)
    assert figures.requests == 100
    assert figures.errors == {"422": 6, "503": 4}
    assert figures.by("serving_answers_total", "source") == {"model": 75, "baseline": 25}
    assert figures.mean("serving_challenger_difference") == 0.5
    text = Read(page.figures_page(figures, release)).text
    for said in (
        *(
            "1.50%",
            "6 \N{MULTIPLICATION SIGN} 422 unprocessable",
            "503 service unavailable",
            "the baseline answers, not the model",
        ),
        *(
            "the model was too slow",
            "the prediction log cannot be written",
            "the last good one serves",
            "maker: category",
        ),
    ):
        assert said in text, said


def test_a_regression_is_compared_by_how_far_scores_are_apart(made: Callable[[str], Bundle]) -> None:
    release = made("regression-onnx").load()
    text = Read(page.figures_page(page.Figures.read(busy(), release.reference), release)).text
    assert "apart in the mean of 200 rows" in text
    assert "decisions differ" not in text


def test_latency_is_read_out_of_the_buckets_as_prometheus_does(release: Release) -> None:
    figures = page.Figures.read(busy(), release.reference)
    assert figures.quantile_s(0.5) == pytest.approx(0.001)
    assert figures.quantile_s(0.7) == pytest.approx(0.0015)
    assert figures.quantile_s(0.95) == pytest.approx(0.002 + 0.5 * (5 - 0.002))
    late = CollectorRegistry()
    Histogram("serving_request_seconds", "Time", ["route"], buckets=(1, 5), registry=late).labels("/predict").observe(9)
    assert page.Figures.read(late, release.reference).quantile_s(0.5) == 5


def scored(edges: list[float], scores: list[float]) -> CollectorRegistry:
    import numpy as np

    registry = CollectorRegistry()
    counted = Distribution("serving_scores", "b", edges)
    counted.observe(np.array(scores))
    registry.register(counted)
    return registry


def test_scores_stand_beside_those_of_training_exactly_where_the_edges_are_the_same() -> None:
    reference = {"scores": {"score": {"edges": [-2.0, 0.5, 7.0], "shares": [0.4, 0.3, 0.2, 0.1]}}}
    bars = page.Figures.read(scored([-2.0, 0.5, 7.0], [-3, -2, 0, 9]), reference).bars
    assert [bar.share for bar in bars] == [0.5, 0.25, 0, 0.25]
    assert [bar.expected for bar in bars] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_scores_stand_beside_an_estimate_where_the_edges_are_others() -> None:
    reference = {"scores": {"score": {"edges": [0.2, 0.4], "shares": [0.5, 0.3, 0.2]}}}
    bars = page.Figures.read(scored([0.1, 0.3, 1.0], [0.05, 0.2, 0.9, 0.95]), reference).bars
    assert [bar.edge for bar in bars] == [0.1, 0.3, 1.0]  # and nothing beyond 1
    assert [bar.expected for bar in bars] == pytest.approx([0.25, 0.4, 0.35])


def test_scores_of_several_classes_stand_alone(made: Callable[[str], Bundle]) -> None:
    release = made("multiclass-onnx").load()
    figures = page.Figures.read(scored([0.5, 1.0], [0.4, 0.9]), release.reference)
    assert [bar.expected for bar in figures.bars] == [None, None]
    assert "in training" not in Read(page.figures_page(figures, release)).text


def test_figures_renew_themselves_without_a_script(release: Release) -> None:
    read = Read(page.figures_page(page.Figures.read(CollectorRegistry(), release.reference), release))
    assert read.all("meta", **{"http-equiv": "refresh", "content": "5"})
    assert Read(page.page(release)).all("iframe", src="figures")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_edges_have_contrast_enough_in_both_modes(release: Release, mode: str) -> None:
    """WCAG 2.2, AA: 4.5 to 1 for text, 3 to 1 for the edge of a field."""
    style = page.page(release).decode()
    blocks = re.findall(r":root {([^}]*)}", style)
    light, dark, *_ = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block)) for block in blocks)
    colours = light if mode == "light" else light | dark
    texts = [
        ("ink", "card"),
        ("ink", "paper"),
        ("faint", "card"),
        ("faint", "paper"),
        ("accent", "paper"),
        ("bad", "paper"),
    ]
    texts += [("bad", "bad-wash"), ("bad", "card"), ("good", "card"), ("other", "paper"), ("ink", "bad-wash")]
    ratios = {f"{one} on {other}": contrast(colours[one], colours[other]) for one, other in texts}
    ratios |= {f"white on {name}": contrast("#ffffff", colours[name]) for name in ("tag", "press")}
    ratios |= {f"white on {tag}": contrast("#ffffff", tag) for tag in re.findall(r"--tag: (#[0-9a-f]{6})", style)}
    ratios["edge on paper"] = contrast(colours["edge"], colours["paper"]) * 1.5
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
