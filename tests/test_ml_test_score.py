import ast
import re

import pytest

from pipeline.gates import INSPECTION, names
from tests.clones import ROOT

DOCUMENT = (ROOT / "docs/ml-test-score.md").read_text()
# Breck et al., The ML Test Score, 2017: tables I to IV
RUBRIC = {
    "Features and data": [
        "Feature expectations are captured in a schema",
        "All features are beneficial",
        "No feature's cost is too much",
        "Features adhere to meta-level requirements",
        "The data pipeline has appropriate privacy controls",
        "New features can be added quickly",
        "All input feature code is tested",
    ],
    "Model development": [
        "Model specs are reviewed and submitted",
        "Offline and online metrics correlate",
        "All hyperparameters have been tuned",
        "The impact of model staleness is known",
        "A simpler model is not better",
        "Model quality is sufficient on important data slices",
        "The model is tested for considerations of inclusion",
    ],
    "Infrastructure": [
        "Training is reproducible",
        "Model specs are unit tested",
        "The ML pipeline is integration tested",
        "Model quality is validated before serving",
        "The model is debuggable",
        "Models are canaried before serving",
        "Serving models can be rolled back",
    ],
    "Monitoring": [
        "Dependency changes result in notification",
        "Data invariants hold for inputs",
        "Training and serving are not skewed",
        "Models are not too stale",
        "Models are numerically stable",
        "Computing performance has not regressed",
        "Prediction quality has not regressed",
    ],
}
MAY_WAIT = {"Models are canaried before serving", "Serving models can be rolled back", *RUBRIC["Monitoring"]}
POINTS = {"1": 1.0, "½": 0.5, "0": 0.0}
NOT_RUN = {"skip", "skipif", "xfail", "importorskip"}


def complaints(text: str) -> list[str]:
    """Whatever the document claims and does not hold."""
    found = [said for name in sorted(set(named(text))) if (said := untrue(name))]
    sections = {title: rows for title, _, rows in parts(text)}
    if {title: [name for name, _, _ in rows] for title, rows in sections.items()} != RUBRIC:
        found.append("the rows are not the 28 tests of the rubric")
    for name, points, what in (row for rows in sections.values() for row in rows):
        found += [f"'{name}': {said}" for said in unearned(name, points, what)]
    sums = {title: sum(POINTS.get(points, 0) for _, points, _ in rows) for title, rows in sections.items()}
    found += [
        f"{title}: says {said}, adds up to {sums[title]:g}"
        for title, said, _ in parts(text)
        if said != f"{sums[title]:g}"
    ]
    each = ", ".join(f"{title.lower()} {points:g}" for title, points in sums.items())
    score = f"**Score: {min(sums.values(), default=0):g} of 7**, the lowest of four sections: {each}."
    return found if score in text.partition("\n## ")[0] else [*found, f"expected at the top: {score}"]


def parts(text: str) -> list[tuple[str, str, list[tuple[str, str, str]]]]:
    """Each section: its title, the points that it says, and its rows (test, points, what runs)."""
    cut = re.split(r"^## (.+): ([\d.]+) of 7$", text, flags=re.MULTILINE)[1:]
    return [
        (title, said, re.findall(r"^\| (?!test \||---)([^|]+) \| ([^|]+) \| ([^|]+) \|$", body, re.MULTILINE))
        for title, said, body in zip(cut[::3], cut[1::3], cut[2::3], strict=True)
    ]


def named(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def is_command(name: str) -> bool:
    return name.split()[0] in ("make", "dvc", "python")


def runs(name: str) -> bool:
    """Whether this runs by itself: a gate, a test, or a command of the CI."""
    if is_command(name):
        return bool(re.search(rf"^(\S+/)?{re.escape(name)}\b", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    return name in names(INSPECTION) or bool(re.match(r"tests/(\w+/)*test_\w+\.py", name))


def unearned(name: str, points: str, what: str) -> list[str]:
    """What speaks against the points of a row."""
    waits, given = what.startswith("Not yet: with the "), named(what)
    documented = any(map(is_command, given)) and any(each.startswith("docs/") for each in given)
    checks = {
        f"{points} is no number of points": points not in POINTS,
        "'not yet' and points do not go together": waits != (points == "0"),
        "cannot wait": waits and name not in MAY_WAIT,
        "names nothing that runs by itself": points == "1" and not any(map(runs, given)),
        "names no results of what is done by hand": points == "½" and not (what.startswith("By hand: ") and documented),
    }
    return [said for said, broken in checks.items() if broken]


def untrue(name: str) -> str | None:
    """Why what the document names is not there, or does not run; None where it does."""
    file, _, test = name.partition("::")
    if is_command(name):
        target = rf"^{name.removeprefix('make ')}:.* ## "
        known = runs(name) or re.search(target, (ROOT / "Makefile").read_text(), re.MULTILINE)
        return None if known else f"`{name}` is no command of the project"
    if "/" not in name and not (ROOT / name).is_file():
        return None if name in names(INSPECTION) else f"`{name}` is no gate"
    if not (ROOT / file).exists():
        return f"`{file}` does not exist"
    if not runs(file):
        return f"`{name}` is no test" if test else None
    why = not_run((ROOT / file).read_text(), test)
    return why and f"`{name}` {why}"


def not_run(source: str, test: str) -> str | None:
    """Why pytest would not run a test of this source (any of its tests, where none is named); None where it does."""
    tree = ast.parse(source).body
    tests = {node.name: node for node in tree if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    chosen = [node for name, node in tests.items() if test in ("", name)]
    if not chosen:
        return "holds no such test"
    rest = [node for node in tree if not isinstance(node, ast.FunctionDef)]
    return "is skipped, or expected to fail" if any(map(gives_way, [*chosen, *rest])) else None


def gives_way(node: ast.AST) -> bool:
    return any(getattr(each, "attr", getattr(each, "id", "")) in NOT_RUN for each in ast.walk(node))


def test_the_document_claims_nothing_that_does_not_hold() -> None:
    assert complaints(DOCUMENT) == []


def made(name: str = "", points: str = "1", what: str = "Gate `leak`") -> str:
    """A document that holds, with one row as given."""
    lines = []
    for title, tests in RUBRIC.items():
        rows = [
            f"| {test} | {points} | {what} |" if test == name else f"| {test} | 1 | Gate `leak` |" for test in tests
        ]
        lines += [f"\n## {title}: 7 of 7\n", "| test | points | what runs |", "| --- | --- | --- |", *rows]
    each = ", ".join(f"{title.lower()} 7" for title in RUBRIC)
    return "\n".join([f"**Score: 7 of 7**, the lowest of four sections: {each}.", *lines]) + "\n"


WAITS = "Models are canaried before serving"
BY_HAND = "By hand: `make bench`, with results in `docs/benchmarks.md`"


@pytest.mark.parametrize(
    "what",
    [
        "`make check` does it",
        "`python -m flows.recorded`",
        "Gate `slices` and `tests/pipeline/test_slices.py`",
        "`tests/test_ml_test_score.py::test_what_runs_counts`, as `params.yaml` says",
    ],
)
def test_what_runs_counts(what: str) -> None:
    assert complaints(made(WAITS, "1", what)) == []


@pytest.mark.parametrize(
    ("points", "sums", "what"), [("0", "6", "Not yet: with the service"), ("½", "6.5", BY_HAND)]
)  # fmt: skip
def test_what_waits_or_is_done_by_hand_counts_less(points: str, sums: str, what: str) -> None:
    text = made(WAITS, points, what).replace("## Infrastructure: 7", f"## Infrastructure: {sums}")
    text = text.replace("Score: 7 of 7", f"Score: {sums} of 7").replace("infrastructure 7", f"infrastructure {sums}")
    assert complaints(text) == []


@pytest.mark.parametrize(
    ("points", "what", "said"),
    [
        ("1", "Gate `slicing`", "`slicing` is no gate"),
        ("1", "`tests/test_readme.py::test_nothing`", "`tests/test_readme.py::test_nothing` holds no such test"),
        ("1", "`tests/clones.py::make_clone`", "`tests/clones.py::make_clone` is no test"),
        ("1", "`tests/test_gone.py`", "`tests/test_gone.py` does not exist"),
        ("1", "`make nothing`", "`make nothing` is no command of the project"),
        ("1", "`dvc push`", "`dvc push` is no command of the project"),
        ("1", "It is seen to", "names nothing that runs by itself"),
        ("1", "`make bench` and `tests/clones.py`", "names nothing that runs by itself"),
        ("1", "Not yet: with the service", "'not yet' and points do not go together"),
        ("0", "Gate `leak`", "'not yet' and points do not go together"),
        ("½", "By hand: `make bench`", "names no results of what is done by hand"),
        ("2", "Gate `leak`", "2 is no number of points"),
        ("½", BY_HAND, "Infrastructure: says 7, adds up to 6.5"),
        ("½", BY_HAND, "expected at the top: **Score: 6.5 of 7**"),
    ],
)
def test_a_claim_that_does_not_hold_is_found(points: str, what: str, said: str) -> None:
    assert any(said in each for each in complaints(made(WAITS, points, what)))


def test_data_and_model_cannot_wait() -> None:
    found = complaints(made("A simpler model is not better", "0", "Not yet: with the service"))
    assert "'A simpler model is not better': cannot wait" in found


def test_another_rubric_is_found() -> None:
    assert complaints(made().replace("All features are beneficial", "All is well")) == [
        "the rows are not the 28 tests of the rubric"
    ]


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.skip\ndef test_a(): pass",
        "@pytest.mark.skipif(True, reason='so')\ndef test_a(): pass",
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.xfail)])\ndef test_a(x): pass",
        "def test_a():\n    if late(): pytest.skip('later')",
        "pytestmark = pytest.mark.skip\ndef test_a(): pass",
        "gone = pytest.importorskip('gone')\ndef test_a(): pass",
        "from pytest import skip\ndef test_a():\n    skip('later')",
    ],
)
def test_a_test_that_is_skipped_does_not_run(source: str) -> None:
    assert not_run(source, "test_a") == "is skipped, or expected to fail"
    assert not_run(source, "") == "is skipped, or expected to fail"


def test_a_skipped_neighbour_is_no_matter() -> None:
    source = "def test_a(): pass\n@pytest.mark.skip\ndef test_b(): pass\ndef made(): pass"
    assert not_run(source, "test_a") is None
    assert not_run(source, "test_b") == "is skipped, or expected to fail"
    assert not_run(source, "made") == "holds no such test"
