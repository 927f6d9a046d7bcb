"""What the workflows do, step by step, from a first model to a rollback: really trained, built, pushed and served."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir
from typing import Any

import pytest

from flows import ledger
from pipeline.canonical import files_hash, folder_files
from tests.clones import Clone
from tests.container.conftest import ROWS, Container
from tests.delivery.workflows import GitHub, Job
from tests.flows.hangar import MLFLOW_WARNS, registry_now
from tests.problem.workshop import Workshop, intact

pytestmark = MLFLOW_WARNS
__all__ = ["intact"]  # a fixture


class Team:
    """Those who change the model, in a clone of their own."""

    def __init__(self, github: GitHub, first: Workshop) -> None:
        subprocess.run(["git", "clone", "--quiet", "--bare", str(first.path), str(github.origin)], check=True)
        self.clone = Clone(github.clone(github.folder / "team"))
        self.clone.run("git", "config", "user.name", "Ada")
        self.clone.run("git", "config", "user.email", "ada@example.org")
        owners = self.clone.path / ".github/CODEOWNERS"
        owners.write_text("* @ada\n")
        self.clone.dvc("repro", "--pull")
        self.push("the owners", "main")

    def append(self, name: str, text: str) -> None:
        path = self.clone.path / name
        text = path.read_text() + text
        path.unlink()  # it may be a link to DVC's cache
        path.write_text(text)

    def bundle(self) -> str:
        return files_hash(folder_files(self.clone.path / "bundle"))

    def push(self, message: str, branch: str) -> None:
        self.clone.dvc("push")
        self.clone.run("git", "add", "--all")
        self.clone.run("git", "commit", "--quiet", "--message", message)
        self.clone.run("git", "push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")

    def merge(self) -> None:
        self.clone.run("git", "push", "--quiet", "origin", "HEAD:refs/heads/main")


def results(jobs: Mapping[str, Job]) -> dict[str, str]:
    return {name: job.result for name, job in jobs.items()}


def promoted(github: GitHub, message: str) -> dict[str, str]:
    """What came of the workflow that a merge starts."""
    return results(github.run("promote", "push", {"head_commit": {"message": message}}))


def images(github: GitHub) -> dict[str, tuple[str, str]]:
    """The digest and the bundle of each tag in the registry."""
    repository = f"docker://{github.vars['IMAGE_REPOSITORY']}"

    def ask(*command: str) -> Any:
        return json.loads(subprocess.run(command, env={**github.env}, capture_output=True, check=True).stdout)

    tags = ask("skopeo", "list-tags", repository)["Tags"]
    found = {tag: ask("skopeo", "inspect", f"{repository}:{tag}") for tag in tags}
    return {tag: (image["Digest"], image["Labels"]["model.hash"]) for tag, image in found.items()}


def released(github: GitHub) -> list[str]:
    """The tags that got a release with its evidence."""
    calls = [json.loads(line) for line in (github.folder / "calls.jsonl").read_text().splitlines()]
    return [call[2] for call in calls if call[:2] == ["release", "upload"] and "sbom.json" in call]


def verified(github: GitHub) -> list[str]:
    """The digests whose builder was asked for, in order."""
    calls = [json.loads(line) for line in (github.folder / "calls.jsonl").read_text().splitlines()]
    asked = [call for call in calls if call[:2] == ["attestation", "verify"]]
    assert all(call[-1].endswith("/.github/workflows/promote.yml") for call in asked)
    return [call[2].partition("@")[2] for call in asked]


def served(github: GitHub, digest: str) -> str:
    """The bundle whose predictions a container of that image gives, which is pulled from the registry."""
    container = Container(github.folder, "--pull=always", image=f"{github.vars['IMAGE_REPOSITORY']}@{digest}")
    try:
        container.first_prediction()
        return str(container.predict(ROWS[:1])[1]["model"]["hash"])
    finally:
        container.remove()


def test_two_models_fly_a_forged_one_does_not_and_the_first_comes_back(
    github: GitHub, intact: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    team = Team(github, intact)
    one = team.bundle()
    assert promoted(github, "the first model") == {"build": "success", "fly": "success"}
    first = images(github)
    assert first == dict.fromkeys([one[:12], "staging", "champion", "v1"], (first["v1"][0], one))
    again = github.again("promote", "fly")
    assert (again.result, images(github)) == ("success", first), again.said
    assert "model/v1: bundle" in again.said
    assert "is the champion already" in again.said

    team.clone.edit_params(train__costs={"missed": 3.5, "false_alarm": 1.0})
    team.clone.dvc("repro")
    two = team.bundle()
    team.push("missed flights cost more", "dearer")
    checked = github.run("check", "pull_request", {"branch": "dearer"})
    assert results(checked) == dict.fromkeys(["checks", "locks", "tests", "model", "all"], "success")
    head = {"head_branch": "dearer", "head_sha": github.git("rev-parse", "dearer")}
    (github.folder / "head.json").write_text(json.dumps(head))
    run = {"id": 7, "html_url": "https://github.invalid/7", "event": "pull_request", **head}
    assert results(github.run("comment", "workflow_run", {"workflow_run": run})) == {"comment": "success"}
    [comment] = json.loads((github.folder / "comments.json").read_text())
    assert "AIRWORTHY" in comment["body"]
    assert "train.costs.missed" in comment["body"]
    team.merge()
    assert promoted(github, "missed flights cost more") == {"build": "success", "fly": "success"}
    second = images(github)
    assert second == first | dict.fromkeys([two[:12], "staging", "champion", "v2"], (second["v2"][0], two))
    assert released(github) == ["model/v1", "model/v1", "model/v2"]
    bill = json.loads((github.folder / "artifacts/evidence/sbom.json").read_text())
    assert {"numpy", "python", "libc6"} <= {component["name"] for component in bill["components"]}
    assert len([action for action in github.used if action.startswith("actions/attest ")]) == 4

    team.append("reports/card.md", "\nforged\n")
    team.clone.dvc("commit", "--force")
    team.push("a card that is too good to be true", "main")
    refused = github.run("check", "push")
    assert results(refused) | {"model": "failure", "all": "failure"} == results(refused)
    assert "GROUNDED by recorded" in refused["model"].said
    assert promoted(github, "forged") == {"build": "failure", "fly": "skipped"}
    assert images(github) == second

    back = github.run("rollback", "workflow_dispatch", version="v1", reason="complaints from JFK")
    assert results(back) == {"rollback": "success"}
    took = re.search(r"flows\.rollback .*  # (.*) s$", back["rollback"].said, re.MULTILINE)
    assert took
    with capsys.disabled():
        sys.stdout.write(f"\npython -m flows.rollback, with a registry of two versions in SQLite: {took[1]} s\n")
    third = images(github)
    assert third == second | dict.fromkeys(["champion", "v3"], first["v1"])
    monkeypatch.setenv("HOME", github.env["HOME"])
    assert served(github, third["champion"][0]) == one
    database = back["rollback"].workspace / "mlflow.db"
    assert registry_now(f"sqlite:///{database}")["aliases"] == {"champion": one, "previous": two}
    team.clone.run("git", "fetch", "--quiet", "--tags")
    with chdir(team.clone.path):
        flown = ledger.entries()
    assert [entry.bundle for entry in flown] == [one, two, one]
    assert [told["because"] for told in flown.values()] == [
        "the first model", "missed flights cost more", "complaints from JFK",
    ]  # fmt: skip
    assert {told["by"] for told in flown.values()} == {"ada"}
    assert [told["image"] for told in flown.values()] == [first["v1"][0], second["v2"][0], first["v1"][0]]
    assert [told["run"] for told in flown.values()] == ["1", "4", "7"]
    assert verified(github) == [told["image"] for told in list(flown.values())[:1] + list(flown.values())]
