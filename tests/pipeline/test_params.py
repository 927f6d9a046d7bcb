import ast
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from pipeline.errors import InputError
from pipeline.evaluate import EvaluateParams
from pipeline.ingest import IngestParams
from pipeline.params import SECTIONS, Params, Seed, read_section
from pipeline.preprocess import PreprocessParams
from pipeline.train import TrainParams
from pipeline.tune import TuneParams

REPOSITORY = Path(__file__).parents[2]
STAGES: dict[str, type[Params]] = {
    "ingest": IngestParams,
    "preprocess": PreprocessParams,
    "tune": TuneParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
}


@pytest.fixture(autouse=True)
def section_of_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.params.SECTIONS", (*SECTIONS, "stage", "other"))


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("stage: {}\nstrange: {a: 1}\n")
    with pytest.raises(InputError, match=r"got \['strange'\] too"):
        read_section(tmp_path / "params.yaml", "stage", Params)


class Inner(Params):
    method: Literal["inner"]
    share: float


class Other(Params):
    method: Literal["other"]


class Section(Params):
    count: int = Field(ge=1)
    names: list[str]
    seed: Seed
    part: Annotated[Inner | Other, Field(discriminator="method")]


GIVEN = "{count: 2, names: [a], seed: 1, part: {method: inner, share: 0.5}}"


def read(tmp_path: Path, text: str) -> Section:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return read_section(path, "stage", Section)


def test_a_section_is_read_typed(tmp_path: Path) -> None:
    section = read(tmp_path, f"stage: {GIVEN}\nother: {{}}\n")
    assert section.part == Inner(method="inner", share=0.5)
    assert (section.count, section.names, section.seed) == (2, ["a"], 1)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("count: 2", "count: 2, colour: red", "'stage.colour' is not a parameter; remove it"),
        ("count: 2, ", "", "'stage.count' is missing; add it"),
        ("count: 2", "count: '2'", "'stage.count' is '2', but input should be a valid integer; correct it"),
        ("count: 2", "count: true", "'stage.count' is True, but input should be a valid integer"),
        ("count: 2", "count: 0", "'stage.count' is 0, but input should be greater than or equal to 1"),
        ("names: [a]", "names: [a, 3]", "'stage.names.1' is 3, but input should be a valid string"),
        ("names: [a]", "names: a", "'stage.names' is 'a', but input should be a valid list"),
        ("seed: 1", "seed: -1", "'stage.seed' is -1, but input should be greater than or equal to 0"),
        ("share: 0.5", "share: .nan", "'stage.part.share' is nan, but input should be a finite number"),
        (", share: 0.5", "", "'stage.part.share' is missing"),
        ("share: 0.5", "share: 0.5, size: 1", "'stage.part.size' is not a parameter"),
        ("method: inner", "method: inne", "'stage.part' is .*'inner', 'other'"),
        ("method: inner, ", "", "'stage.part' is .*unable to extract tag using discriminator 'method'"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"params\.yaml: .*{message}"):
        read(tmp_path, f"stage: {GIVEN.replace(before, after)}")


def test_every_wrong_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'stage\.count'.*'stage\.seed'"):
        read(tmp_path, f"stage: {GIVEN.replace('count: 2', 'count: x').replace('seed: 1', 'seed: x')}")


@pytest.mark.parametrize("text", ["", "other: {}", "stage:", "stage: 3", "[1]"])
def test_a_section_that_is_not_there_is_missed(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="expected a section 'stage' with keys, found none"):
        read(tmp_path, text)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)params\.yaml: expected YAML.*line 2"):
        read(tmp_path, "stage: {count: 2\nother: 3")


def test_a_file_that_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected the parameters in .*params\.yaml, found no such file"):
        read_section(tmp_path / "params.yaml", "stage", Section)


def test_the_projects_parameters_are_those_of_its_stages() -> None:
    path = REPOSITORY / "params.yaml"
    assert {name: read_section(path, name, model) for name, model in STAGES.items()}.keys() <= set(
        yaml.safe_load(path.read_text())
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_of_a_stage_is_read(stage: str) -> None:
    trees = [ast.parse((REPOSITORY / place / f"{stage}.py").read_text()) for place in ("src/pipeline", "flows")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    models = [
        node
        for node in nodes
        if isinstance(node, ast.ClassDef) and "Params" in [base.id for base in node.bases if isinstance(base, ast.Name)]
    ]
    fields = {
        line.target.id
        for model in models
        for line in model.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    assert fields
    assert fields <= read
