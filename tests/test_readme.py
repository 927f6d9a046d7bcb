import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib

import pytest
import yaml

from tests.clones import ROOT

README = (ROOT / "README.md").read_text()
TREE = re.search(r"## What is where\n\n```text\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
            for line in block.splitlines()]  # fmt: skip


def tree() -> list[str]:
    """The paths that the README's tree names."""
    assert TREE is not None
    paths, folder = [], ""
    for line in TREE.group(1).splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name in ("src/problem/", "src/pipeline/", "flows/", "serving/") else ""
            paths.append(name)
        else:
            paths.append(folder + name)
    return paths


def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_tree_names_only_what_exists() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_tree_names_every_module() -> None:
    rooms = ("src/", "flows/", "serving/")
    left_out = ("__init__.py", ".lock", ".in", ".yml", ".dockerignore")  # which the line of another file names
    folders = ("serving/grafana/", "serving/templates/")  # named as a whole
    modules = [n for n in tracked() if n.startswith(rooms) and not n.endswith(left_out) and not n.startswith(folders)]
    assert [name for name in modules if name not in tree()] == []


def test_tree_names_everything_at_the_top() -> None:
    left_out = {".gitattributes", ".gitignore", ".dvcignore", ".pre-commit-config.yaml", ".ci", ".github", ".dvc"}
    named = {path.split("/")[0] for path in tree()} | {"README.md", "LICENSE", "CHANGELOG.md", "src"} | left_out
    assert {name.split("/")[0] for name in tracked()} - named == set()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))))
def test_named_make_command_exists(command: str) -> None:
    assert re.search(rf"^{command}:.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([a-z.]+)", README))))
def test_named_module_exists(module: str) -> None:
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_first_screen_holds_the_two_commands_before_the_tree() -> None:
    first = README.partition("## What is where")[0]
    assert [line for line in COMMANDS if line.startswith("make")][:2] == ["make repro", "make test"]
    assert all(f"make {name}" in first for name in ("repro", "test"))


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()


def test_stages_stand_under_one_name_everywhere() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert [*params] == ["ingest", *stages, "inspect"]
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m flows.{name}"
        assert stage["params"] == [name]
        assert (ROOT / f"flows/{name}.py").is_file()
        assert (ROOT / f"src/pipeline/{name}.py").is_file()
        assert (ROOT / f"tests/pipeline/test_{name}.py").is_file()


def test_name_of_the_project_stands_in_pyproject_alone() -> None:
    """As a name: "an airworthy model" is the verdict, whatever the project is called."""
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    ending = (".py", ".yaml", ".yml", ".toml", ".json", "Makefile", "Dockerfile")
    code = [n for n in tracked() if n.endswith(ending) and n != "pyproject.toml" and not n.startswith("tests/")]
    as_a_name = re.compile(rf"{name.title()}|{name}[:/-]\w|/{name}\b")
    assert [n for n in code if as_a_name.search((ROOT / n).read_text())] == []


def test_readme_counts_the_acts_of_sabotage() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/sabotage"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    acts = sum("[sabotaged" in line for line in listed.splitlines())
    assert acts == sum("[untouched" in line for line in listed.splitlines())
    assert f"commits {acts} acts of sabotage" in README


SERVED = ["serving/requirements.lock", "serving/requirements-sklearn.lock", "tests/serving/requirements.lock"]


def locked(name: str) -> dict[str, str]:
    """The version of each package in a lock; where Python's version decides, the last."""
    found = re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE)
    return {package.lower().replace("_", "-"): version for package, version in found}


@pytest.mark.parametrize("name", SERVED)
def test_the_service_has_the_versions_that_the_pipeline_has(name: str) -> None:
    trained, served = locked("requirements.lock"), locked(name)
    assert {package: (trained[package], served[package]) for package in trained.keys() & served.keys()
            if trained[package] != served[package]} == {}  # fmt: skip
    assert {"numpy", "onnxruntime", "fastapi"} <= trained.keys() & served.keys()


@pytest.mark.parametrize("name", ["requirements.lock", ".github/requirements.lock", *SERVED])
def test_lock_holds_no_address_and_a_hash_for_every_package(name: str) -> None:
    lock = (ROOT / name).read_text()
    assert "://" not in lock
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\S)", lock.strip()))


def test_lock_satisfies_every_declared_dependency() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [Requirement(text) for text in project["project"]["dependencies"] + project["dependency-groups"]["dev"]]
    locked = dict(
        re.findall(r"^([\w.-]+)(?:\[[^\]]*\])?==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    locked = {canonicalize_name(name): version for name, version in locked.items()}
    broken = [str(r) for r in declared if not r.specifier.contains(locked.get(canonicalize_name(r.name), "0"))]
    assert broken == []


@pytest.mark.parametrize(("room", "most"), [("src/", 3459), ("flows/", 2710), ("serving/", 3051)])
def test_each_room_is_small_enough_to_read(room: str, most: int) -> None:
    """The goal is 4,000 for all of it: docs/decisions.md tells why it is missed. Growth is a change of this line."""
    code = [n for n in tracked() if n.endswith(".py") and n.startswith(room)]
    assert sum(lines_of_code((ROOT / name).read_text()) for name in code) <= most


def test_all_code_is_in_a_room_that_is_measured() -> None:
    assert {n.split("/")[0] for n in tracked() if n.endswith(".py")} == {"src", "flows", "serving", "tests"}


def lines_of_code(source: str) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)
