import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import deliver, ledger, tracking
from flows.deliver import find, production, push, staging, status
from flows.ledger import Refused
from flows.promote import promote
from flows.rollback import rollback
from pipeline.errors import InputError
from tests.clones import ROOT
from tests.container.conftest import ENGINE
from tests.flows.hangar import MLFLOW_WARNS, Hangar, hangar, hangars
from tests.flows.test_tracking import Killed, hasty_sqlite

pytestmark = MLFLOW_WARNS
__all__ = ["hangar", "hangars", "hasty_sqlite"]  # fixtures
KUBECTL = """#!/bin/sh
echo "$@" >> {folder}/kubectl.txt
case "$*" in *apply*) for last; do :; done; cp "$last/kustomization.yaml" {folder};; esac
"""


class Yard:
    """A hangar whose images are built and pushed, and hold nothing but the labels that the service's would have."""

    def __init__(self, hangar: Hangar, repository: str) -> None:
        self.hangar, self.folder, self.repository = hangar, hangar.path.parent, repository

    def build(self, model: str, **labels: str) -> str:
        """Check a model out, inspect it, and build its image; returns what the bundle is known by."""
        bundle = self.hangar.take(model)
        subprocess.run([sys.executable, "flows/inspect.py"], check=False)
        commit = self.hangar.git("rev-parse", "HEAD")
        told = {"model.hash": bundle, "org.opencontainers.image.revision": commit, **labels}
        lines = ["FROM scratch", "COPY Dockerfile /", *(f"LABEL {name}={value}" for name, value in told.items())]
        (self.folder / "image").mkdir(exist_ok=True)
        (self.folder / "image/Dockerfile").write_text("\n".join(lines))
        name = f"{tracking.project()}:{bundle[:12]}"
        subprocess.run([ENGINE, "build", "--tag", name, str(self.folder / "image")], check=True, capture_output=True)
        return bundle

    def told(self) -> dict[str, str]:
        """What the last command told the steps after it."""
        return dict(line.split("=", 1) for line in (self.folder / "output").read_text().splitlines())

    def tags(self) -> dict[str, str]:
        """The digest of each tag."""
        source = f"docker://{self.repository}"
        listed = subprocess.run(["skopeo", "list-tags", source], capture_output=True, check=True, text=True).stdout
        ask = ["skopeo", "inspect", "--format", "{{.Digest}}"]
        return {
            tag: subprocess.run([*ask, f"{source}:{tag}"], capture_output=True, check=True, text=True).stdout.strip()
            for tag in yaml.safe_load(listed)["Tags"]
        }


@pytest.fixture
def yard(hangar: Hangar, home: tuple[Path, str], local_images: None, monkeypatch: pytest.MonkeyPatch) -> Yard:  # noqa: ARG001
    folder, registry = home
    repository = f"{registry}/tests/{hangar.path.parent.name.rstrip('_').replace('_', '-')}"
    told = {"HOME": str(folder), "ENGINE": ENGINE, "IMAGE_REPOSITORY": repository}
    for name, value in (told | {"GITHUB_OUTPUT": str(hangar.path.parent / "output")}).items():
        monkeypatch.setenv(name, value)
    for name in ("DEPLOY_TARGET", "SERVING_INSPECTED", "KUBE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return Yard(hangar, repository)


def test_an_image_goes_from_the_push_over_staging_to_production_and_back_by_its_digest(yard: Yard) -> None:
    digests, bundles = {}, {}
    for version, model in (("v1", "one"), ("v2", "two")):
        bundles[model] = yard.build(model)
        push()
        assert yard.told()["flies"] == "false"
        digests[version] = yard.told()["digest"]
        staging(digests[version])
        promote("ada", "it was time")
        production(digests[version])
        assert yard.told() | {"digest": digests[version], "tag": f"model/{version}"} == yard.told()
        assert {yard.tags()[tag] for tag in (version, "champion", "staging")} == {digests[version]}
        push()
        assert yard.told()["flies"] == "true"
    yard.build("one", rebuilt="later")
    push()
    assert yard.told()["digest"] not in digests.values()
    rollback("ada", "complaints", to="v1")
    for _ in ("once", "and again"):
        production()
        assert yard.tags() | digests | dict.fromkeys(["champion", "v3"], digests["v1"]) == yard.tags()


def test_only_the_image_of_this_airworthy_bundle_at_this_commit_is_pushed(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.build("one", **{"model.hash": "0" * 64})
    with pytest.raises(Refused, match=r"its labels say 000000000000 and .*; commit, then run `make image`"):
        push()
    yard.build("one", **{"org.opencontainers.image.revision": "abc-dirty"})
    with pytest.raises(Refused, match="and abc-dirty;"):
        push()
    monkeypatch.setenv("GROUNDED", "floor")
    yard.build("one")
    with pytest.raises(Refused, match=r"expected an airworthy bundle, .* is grounded"):
        push()
    monkeypatch.setenv("SERVING_INSPECTED", "0")  # an emergency
    push()
    assert list(yard.tags()) == [yard.hangar.bundle()[:12]]


def test_the_image_that_an_entry_names_counts_and_not_a_name_that_somebody_moved(yard: Yard) -> None:
    yard.build("one")
    push()
    first = yard.told()["digest"]
    promote("ada", "the first", image=first)
    yard.build("one", rebuilt="later")
    push()
    later, there = yard.told()["digest"], f"docker://{yard.repository}"
    subprocess.run(["skopeo", "copy", "--quiet", f"{there}@{later}", f"{there}:v1"], check=True)
    find(digest=later)
    assert yard.told()["digest"] == later != first
    find("v1")
    assert yard.told()["digest"] == first
    production()
    assert {yard.tags()[name] for name in ("v1", "champion")} == {first}
    production(later)
    assert yard.tags() | {"v1": first, "champion": later} == yard.tags()
    yard.build("two")
    with pytest.raises(Refused, match=r"the label model\.hash there says"):
        find(digest=later)
    with pytest.raises(InputError, match="expected an image of bundle"):
        find()
    with pytest.raises(Refused, match=r"expected an entry of the ledger \(model/v1\), got v9"):
        find("v9")
    promote("ada", "no image yet")
    rollback("ada", "complaints", to="v1")
    assert [told["image"] for told in ledger.entries().values()] == [first, None, first]


def test_killed_on_the_way_into_production_it_is_told_what_is_there_and_the_next_run_completes_it(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {}
    for model in ("one", "two"):
        yard.build(model)
        push()
        digests[model] = yard.told()["digest"]
        promote("ada", "it was time", image=digests[model])
        if model == "one":
            production()
            status()

    def killed_at(step: str) -> None:
        def dying(*arguments: object) -> None:
            if step in arguments:
                raise Killed
            name_it(*arguments)

        name_it = deliver._name
        with monkeypatch.context() as patch:
            patch.setattr(deliver, "_name", dying)
            patch.setattr(deliver, "_apply", dying)
            with pytest.raises(Killed):
                production()

    known = digests["one"]
    for step, named in (("v2", {}), ("champion", {"v2": digests["two"]})):
        killed_at(step)
        assert yard.tags() | {"champion": known, "v1": known, **named} == yard.tags()
        with pytest.raises(
            Refused, match=rf"image of model/v2, {digests['two']}, it is {known}; run .*deliver product"
        ):
            status()
    killed_at("production")
    for _ in range(2):
        status()
        assert yard.tags() | dict.fromkeys(("champion", "v2"), digests["two"]) == yard.tags()
        production()


def test_who_takes_a_model_back_while_it_is_delivered_has_the_last_word_and_no_release_of_its_name(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests, apply = {}, deliver._apply
    for model in ("one", "two"):
        yard.build(model)
        push()
        digests[model] = yard.told()["digest"]
        promote("ada", "it was time", image=digests[model])

    def taken_back(*_: object) -> None:
        monkeypatch.setattr(deliver, "_apply", apply)
        rollback("ada", "complaints")

    monkeypatch.setattr(deliver, "_apply", taken_back)
    production(digests["two"])
    assert yard.tags()["champion"] == yard.tags()["v3"] == digests["one"]
    assert yard.told() | {"digest": digests["two"], "tag": "model/v2"} == yard.told()
    status()


@pytest.mark.parametrize("command", ["promote --because x --image", "deliver production --digest"])
@pytest.mark.parametrize("digest", ["", "sha256:...", "v1"])
def test_what_is_no_digest_is_not_taken_for_one(command: str, digest: str) -> None:
    call = [sys.executable, "-m", *f"flows.{command}".split(), digest]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f": expected sha256: and 64 digits, as `python -m flows.deliver find` says, got '{digest}'\n" in done.stderr


def test_an_image_that_holds_another_bundle_than_the_champions_serves_nowhere(yard: Yard) -> None:
    with pytest.raises(Refused, match="expected a champion, nothing has flown yet"):
        production()
    yard.build("two")
    push()
    other = yard.told()["digest"]
    yard.build("one")
    promote("ada", "the first")
    with pytest.raises(InputError, match=r"expected an image of bundle .*, found none called v1, .*`make image`"):
        production()
    for digest in (other, None):
        if digest is None:
            there = f"docker://{yard.repository}"
            subprocess.run(["skopeo", "copy", "--quiet", f"{there}@{other}", f"{there}:v1"], check=True)
        with pytest.raises(Refused, match=r"as (sha256:|v1).*, the label model\.hash there says .*; find out who"):
            production(digest)
    assert "champion" not in yard.tags()


@pytest.mark.parametrize(("changed", "shadow"), [("README.md", True), ("src/problem/features.py", False)])
def test_on_kubernetes_staging_shadows_the_champion_where_both_solve_the_same_problem(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, changed: str, shadow: bool
) -> None:
    (tools := yard.folder / "tools").mkdir()
    (tools / "kubectl").write_text(KUBECTL.format(folder=yard.folder))
    (tools / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DEPLOY_TARGET", "kubernetes")
    monkeypatch.setattr("flows.deliver.MANIFESTS", ROOT / "deploy")

    def applied() -> dict[str, str]:
        told = yaml.safe_load((yard.folder / "kustomization.yaml").read_text())
        assert {image["newName"] for image in told["images"]} == {yard.repository}
        return {image["name"]: image["digest"] for image in told["images"]}

    yard.build("one")
    push()
    one = yard.told()["digest"]
    staging()
    assert applied() == {"champion": one, "challenger": one}
    promote("ada", "the first")
    monkeypatch.setenv("KUBE_CONFIG", "clusters: []")
    production()
    assert applied() == {"champion": one}
    calls = (yard.folder / "kubectl.txt").read_text().splitlines()
    assert calls[-1].startswith("--namespace production --kubeconfig ")
    assert calls[-1].endswith("rollout status statefulset/serving --timeout 10m")
    yard.build("two")
    with Path(changed).open("a") as file:
        file.write("\n")
    push()
    staging()
    two = yard.told()["digest"]
    assert applied() == {"champion": one if shadow else two, "challenger": two}


def test_where_it_cannot_deliver_it_says_what_it_lacks(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    yard.build("one")
    push()
    monkeypatch.setenv("DEPLOY_TARGET", "the moon")
    with pytest.raises(InputError, match="expected DEPLOY_TARGET to be registry or kubernetes, got the moon"):
        staging()
    monkeypatch.setenv("IMAGE_REPOSITORY", "127.0.0.1:9/nobody")
    with pytest.raises(InputError, match=r"expected `.*127\.0\.0\.1:9/nobody` to succeed, it said: .*refused"):
        staging()
    monkeypatch.delenv("IMAGE_REPOSITORY")
    with pytest.raises(InputError, match="expected IMAGE_REPOSITORY to name where images go"):
        staging()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.setenv("IMAGE_REPOSITORY", yard.repository)
        patch.setattr(ledger, "entries", lambda: {})
        with pytest.raises(InputError, match="expected skopeo on the path, found none"):
            staging()
