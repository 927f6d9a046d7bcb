import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.canonical import json_bytes
from pipeline.lineage import lineage, loaded_code
from tests.synthetic import make_contract, prepared


def load(path: Path, text: str) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    monkeypatch.setitem(sys.modules, "made_code", load(folder / "made_code.py", "X = 1\n"))
    (tmp_path / "params.yaml").write_text("a: 1\n")
    monkeypatch.chdir(tmp_path)
    return folder


def made(source: Path, *, timed: bool = True) -> dict[str, Any]:
    splits = {"train": prepared().train, "validation": prepared().validation}
    return lineage(
        splits, contract=make_contract(timed=timed), files=[Path("params.yaml")], params={"seed": 1}, source=source
    )


def test_the_same_ingredients_give_the_same_lineage(source: Path) -> None:
    assert json_bytes(made(source)) == json_bytes(made(source))


def test_its_paths_are_those_of_the_repository(source: Path) -> None:
    assert str(source.parent) not in json.dumps(made(source))
    assert list(made(source)["files"]) == ["params.yaml"]


def test_it_changes_with_files_and_code(source: Path) -> None:
    before = made(source)
    (source / "made_code.py").write_text("X = 2\n")
    (source.parent / "params.yaml").write_text("a: 2\n")
    after = made(source)
    assert {name for name in before if before[name] != after[name]} == {"files", "code"}


def test_only_loaded_code_counts(source: Path) -> None:
    (source / "never_loaded.py").write_text("")
    assert [path.name for path in loaded_code(source)] == ["made_code.py"]


def test_rows_have_their_span_where_there_is_time(source: Path) -> None:
    rows = made(source)["rows"]
    assert isinstance(rows, dict)
    assert rows["train"] == {"rows": 296, "first": "2020-01-01T00:00:00", "last": "2020-03-31T17:14:00"}
    assert made(source, timed=False)["rows"] == {"train": {"rows": 296}, "validation": {"rows": 127}}


def test_the_platform_names_what_bytes_depend_on(source: Path) -> None:
    platform = made(source)["platform"]
    assert isinstance(platform, dict)
    assert {"machine", "python", "kernels", "numpy", "scikit-learn", "onnxruntime"} <= set(platform)
