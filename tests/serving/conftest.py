"""Bundles and servers for the tests of the service, which run in its own environment (serving/.venv)."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.canonical import file_hash
from tests.serving.made import MAIN_PYTHON, ROOT, Bundle, Server, Service, serving


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A made bundle by its task and runtime, such as binary-onnx; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([str(MAIN_PYTHON), str(ROOT / "tests" / "serving" / "make_bundles.py"), str(folder)], check=True)
    return lambda name: Bundle(folder / name / "bundle", folder / "features.py")


@pytest.fixture
def bundle(made: Callable[[str], Bundle], tmp_path: Path) -> Bundle:
    """A copy of the binary bundle, to be changed."""
    original = made("binary-onnx")
    shutil.copytree(original.folder.parent, tmp_path / "release")
    features = shutil.copy(original.features, tmp_path / "features.py")
    return Bundle(tmp_path / "release" / "bundle", Path(features))


@pytest.fixture(scope="session")
def service(made: Callable[[str], Bundle]) -> Service:
    """The binary bundle, served in process."""
    return Service(made("binary-onnx"))


@pytest.fixture(scope="session")
def server(made: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The binary bundle, served by a process of its own; a body has half a second to come."""
    with serving(tmp_path_factory.mktemp("server"), made("binary-onnx"), SERVING_READ_TIMEOUT_S="0.5") as running:
        yield running


@pytest.fixture(scope="session")
def own() -> Bundle:
    """The problem's bundle, as DVC has it."""
    if not (ROOT / "bundle" / "contract.json").exists():
        subprocess.run([str(MAIN_PYTHON), "-m", "dvc", "pull", "--quiet", "bundle"], cwd=ROOT, check=True)
    return Bundle(ROOT / "bundle", ROOT / "src" / "problem" / "features.py")


@pytest.fixture(scope="session")
def sklearn_python() -> str:
    """A Python with what an image for models on scikit-learn has: serving/requirements-sklearn.lock, and no more."""
    lock = ROOT / "serving" / "requirements-sklearn.lock"
    folder = ROOT / ".cache" / "serving-sklearn" / file_hash(lock)[:12]
    uv, python = [str(MAIN_PYTHON), "-m", "uv", "--quiet"], str(folder / "bin" / "python")
    if not (folder / "ready").exists():
        subprocess.run([*uv, "venv", "--clear", "--python", str(MAIN_PYTHON), str(folder)], check=True)
        subprocess.run(
            [*uv, "pip", "sync", "--require-hashes", "--compile-bytecode", "--python", python, str(lock)], check=True
        )
        (folder / "ready").touch()
    return python
