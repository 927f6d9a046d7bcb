import json
import subprocess
import tomllib

import pytest

from pipeline.canonical import files_hash, folder_files
from pipeline.errors import InputError
from serving.image import build_command, engine, image_names
from tests.clones import ROOT
from tests.container.conftest import ENGINE, IMAGE, ask_engine, inspected


def test_labels_say_what_is_inside() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = inspected(IMAGE)["Config"]["Labels"]
    for name in ("version", "description"):
        assert labels[f"org.opencontainers.image.{name}"] == project[name]
    assert labels["org.opencontainers.image.title"] == project["name"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == head.strip()
    assert labels["model.hash"] == files_hash(folder_files(ROOT / "bundle"))


def test_it_adds_little_to_its_base() -> None:
    image = inspected(IMAGE)
    base = image["Config"]["Labels"]["org.opencontainers.image.base.name"]
    if subprocess.run([ENGINE, "image", "inspect", base], capture_output=True, check=False).returncode:
        ask_engine("pull", "--quiet", base)  # docker builds from it without keeping it
    megabytes = (image["Size"] - inspected(base)["Size"]) / 1e6
    print(f"\nabove its base: {megabytes:.0f} MB")  # noqa: T201
    assert megabytes <= 200


def test_no_setting_of_the_machine_that_built_it_is_inside() -> None:
    image = inspected(IMAGE)
    base = inspected(image["Config"]["Labels"]["org.opencontainers.image.base.name"])
    own = set(image["Config"]["Env"]) - set(base["Config"]["Env"])
    assert {variable.partition("=")[0] for variable in own} == {
        "PATH", "PYTHONDONTWRITEBYTECODE", "SERVING_DATA_DIR", "SERVING_HOST", "SERVING_INSPECTED",
        "SERVING_PORT",
    }  # fmt: skip


def test_the_bundle_chooses_what_the_image_holds() -> None:
    runtime = json.loads((ROOT / "bundle/contract.json").read_text())["runtime"]
    lock = {"onnx": "requirements.lock", "sklearn": "requirements-sklearn.lock"}[runtime]
    assert f"LOCK={lock}" in build_command("podman", ["a"], {}, flags="--isolation chroot")


def test_an_emergency_stands_in_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_INSPECTED", "0")
    assert "SERVING_INSPECTED=0" in build_command("podman", ["a"], {}, flags="")


def test_the_engine_is_the_one_that_is_named() -> None:
    assert engine({"ENGINE": "sh"}) == "sh"
    with pytest.raises(InputError, match="expected no-such-engine on the path, found none"):
        engine({"ENGINE": "no-such-engine"})


def test_the_image_is_named_by_the_project_and_the_bundle_unless_told_otherwise() -> None:
    assert image_names({}, "rain", "0123456789abcdef") == ["rain:0123456789ab", "rain:latest"]
    assert image_names({"IMAGE": "registry/rain:1"}, "rain", "0123") == ["registry/rain:1"]
