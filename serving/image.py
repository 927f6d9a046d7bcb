"""The image: an inspected bundle with its service, as podman or docker builds it. Change here to name it otherwise.

It is no part of the service, and not in the image. `make image` runs it, once `python -m serving --check` lets it.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.canonical import files_hash, folder_files
from pipeline.errors import InputError
from serving import ROOT

LOCKS = {"onnx": "requirements.lock", "sklearn": "requirements-sklearn.lock"}  # by what the bundle runs on


def main() -> None:
    """Build the image of the repository as it stands, with what `ENGINE`, `IMAGE` and `BUILD_FLAGS` say."""
    try:
        tool, project = engine(os.environ), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        bundle = files_hash(folder_files(ROOT / "bundle"))
        names = image_names(os.environ, project["name"], bundle)
        command = build_command(tool, names, labels(project, bundle), flags=os.environ.get("BUILD_FLAGS", ""))
    except InputError as error:
        sys.exit(f"image: {error}")
    if status := subprocess.run(command, cwd=ROOT, check=False).returncode:  # noqa: S603 - podman or docker
        sys.exit(status)
    print("built", *names)  # noqa: T201 - its output


def engine(environment: Mapping[str, str]) -> str:
    """The program that builds and runs images; InputError where there is none."""
    named = environment.get("ENGINE")
    for name in [named] if named else ["podman", "docker"]:
        if shutil.which(name):
            return name
    raise InputError(f"expected {named or 'podman or docker'} on the path, found none; install it, or name it: ENGINE=")


def image_names(environment: Mapping[str, str], project: str, bundle: str) -> list[str]:
    """What the image is called: as `IMAGE` says, else by the project, once with the bundle and once as the latest."""
    named = environment.get("IMAGE")
    return [named] if named else [f"{project}:{bundle[:12]}", f"{project}:latest"]


def labels(project: Mapping[str, Any], bundle: str) -> dict[str, str]:
    """The build arguments that become labels."""
    dirty = "-dirty" if _git("status", "--porcelain") else ""
    return {
        "TITLE": project["name"],
        "DESCRIPTION": project["description"],
        "VERSION": project["version"],
        "LICENSES": project["license"],
        "REVISION": _git("rev-parse", "HEAD") + dirty,
        "MODEL_HASH": bundle,
    }


def build_command(tool: str, names: list[str], labels: Mapping[str, str], *, flags: str) -> list[str]:
    """The command that builds: its files are as old as the commit, so that the same commit gives the same layers."""
    runtime = json.loads((ROOT / "bundle/contract.json").read_text())["runtime"]
    committed = _git("log", "-1", "--format=%ct")
    arguments = {**labels, "LOCK": LOCKS[runtime], "SOURCE_DATE_EPOCH": committed}
    if os.environ.get("SERVING_INSPECTED") == "0":  # for an emergency; it stands in the image, and the page says so
        arguments["SERVING_INSPECTED"] = "0"
    own: list[str] = []
    if Path(tool).name == "podman":  # the format of OCI has no health check
        own = ["--format", "docker", "--timestamp", arguments.pop("SOURCE_DATE_EPOCH")]
    pairs = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    tags = [part for name in names for part in ("--tag", name)]
    return [tool, "build", *own, *pairs, *tags, *shlex.split(flags), "--file", "serving/Dockerfile", "."]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603, S607 - git, as found
    return done.stdout.strip()


if __name__ == "__main__":
    main()
