"""Delivery: the image of a bundle, from where it was built to where it serves. Change here to deliver to other places.

`IMAGE_REPOSITORY` names the registry's repository. An image is built once and known by its digest from then on: `push`
puts it there under its bundle's hash, `staging` and `production` give it the names by which it serves. With
`DEPLOY_TARGET=kubernetes` these apply deploy/ as well. All may be run again: what is done already stays as it is.
An entry of the ledger that names a digest is believed, rather than a name, which whoever may push can move.
"""

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import yaml

from flows import ledger, tracking
from flows.ledger import Refused
from flows.register import bundle_hash, described
from flows.stage import run, say
from pipeline.errors import InputError

MANIFESTS = Path("deploy")
LABEL, REVISION = "model.hash", "org.opencontainers.image.revision"


class Image(NamedTuple):
    """An image in the registry, and the bundle that its label says it holds."""

    digest: str
    bundle: str


def push() -> None:
    """Push the image that `make image` built of the bundle on disk at this commit; tells its digest, and whether its
    bundle is what serves in production already. Refused where it is not airworthy (SERVING_INSPECTED=0: whatever the
    inspection says, for an emergency), or the image is another."""
    bundle, commit = bundle_hash(), ledger.git("rev-parse", "HEAD")
    airworthy, waived = described(bundle, [])["airworthy"], os.environ.get("SERVING_INSPECTED") == "0"
    if airworthy != "true" and not waived:
        found = "grounded" if airworthy == "false" else airworthy
        raise Refused(f"expected an airworthy bundle, {bundle[:12]} is {found}; run `python -m flows.inspect`")
    engine = os.environ.get("ENGINE") or next(filter(shutil.which, ("podman", "docker")), "podman")
    built, named = f"{tracking.project()}:{bundle[:12]}", f"{_repository()}:{bundle[:12]}"
    labels = json.loads(_call(engine, "image", "inspect", "--format", "{{json .Config.Labels}}", built)) or {}
    if (labels.get(LABEL), labels.get(REVISION)) != (bundle, commit):
        raise Refused(
            f"expected {built} to hold bundle {bundle[:12]} and to be built from {commit[:12]}, its labels say "
            f"{str(labels.get(LABEL))[:12]} and {labels.get(REVISION)}; commit, then run `make image`"
        )
    _call(engine, "tag", built, named)
    _call(engine, "push", "--quiet", named)
    newest, serving = ledger.champion(), [_image("champion").bundle] if "champion" in _tags() else []
    flies = newest is not None and serving == [bundle] == [newest.bundle]
    _tell(digest=_found(bundle, [bundle[:12]]), flies=str(flies).lower())


def staging(digest: str | None = None) -> None:
    """Let the pushed image of the bundle on disk be `staging`; on Kubernetes, in the champion's shadow, if both solve
    the same problem."""
    bundle, flown = bundle_hash(), ledger.entries()
    here, newest = _found(bundle, [digest or bundle[:12]]), ledger.newest(flown)
    _name(here, "staging")
    champion = here
    if newest and _on_kubernetes() and not ledger.git("diff", "--name-only", newest.tag, "--", "src/problem"):
        champion = _image_of(newest, flown)
    _apply("staging", {"champion": champion, "challenger": here})


def find(version: str | None = None, digest: str | None = None) -> None:
    """Tell the digest of the image of an entry, as in v3, or of the bundle on disk: before it is to fly. Refused where
    there is no such entry, or the image holds another bundle."""
    if version is None:
        bundle = bundle_hash()
        return _tell(digest=_found(bundle, [digest or bundle[:12]]))
    flown = ledger.entries(fetch=True)
    entry = {entry.tag: entry for entry in flown}.get(ledger.tag_of(version))
    if entry is None:
        raise Refused(f"expected an entry of the ledger ({', '.join(entry.tag for entry in flown)}), got {version}")
    return _tell(digest=_image_of(entry, flown, digest))


def status() -> None:
    """Whether `champion` is the image of the ledger's champion; Refused where it is another."""
    flown = ledger.entries(fetch=True)
    newest = _newest(flown)
    image, serving = _image_of(newest, flown), _image("champion").digest if "champion" in _tags() else "nothing"
    if serving != image:
        raise Refused(
            f"expected {_repository()}:champion to be the image of {newest.tag}, {image}, it is {serving}; run `python "
            "-m flows.deliver production`, with --digest where a later image of the same model is to serve"
        )
    say(f"{_repository()}:champion is {image}, the image of {newest.tag}")


def production(digest: str | None = None) -> None:
    """Let the image of the ledger's champion be `champion`, and `vN` as its entry is called, unless that names another.
    `digest`: this image of it; else that of the entry, the one that has that name, that of the entry which it restores,
    or the last one that was pushed. Tells that image and that entry, also where another is `champion` by then."""
    flown = ledger.entries(fetch=True)
    newest = _newest(flown)
    image = _image_of(newest, flown, digest)
    if flown[newest].get("image") in (None, image):  # what has no name is soon cleared away, and vN is to stay
        _name(image, _version(newest.tag))
    _name(image, "champion")
    _apply("production", {"champion": image})
    if ledger.newest(ledger.entries(fetch=True)) != newest:  # somebody was faster, and is to have the last word
        production()
    _tell(digest=image, tag=newest.tag)


def _newest(flown: ledger.Flown) -> ledger.Entry:
    if newest := ledger.newest(flown):
        return newest
    raise Refused("expected a champion, nothing has flown yet; run `python -m flows.promote`")


def _image_of(entry: ledger.Entry, flown: ledger.Flown, digest: str | None = None) -> str:
    names = [_version(entry.tag), _version(flown[entry].get("restores") or ""), entry.bundle[:12]]
    known = digest or flown[entry].get("image")
    return _found(entry.bundle, [known] if known else names)


def _version(tag: str) -> str:
    return tag.removeprefix("model/")


def _found(bundle: str, names: list[str]) -> str:
    """The digest of the first image in the registry that has one of these names, or is one of these digests; Refused
    where it holds another bundle."""
    listed = _tags()
    for name in names:
        if name in listed or name.startswith("sha256:"):
            image = _image(name)
            if image.bundle != bundle:
                raise Refused(
                    f"expected {_repository()} to hold bundle {bundle[:12]} as {name}, the label {LABEL} there says "
                    f"{image.bundle[:12]}; find out who pushed it, and push the right one"
                )
            return image.digest
    raise InputError(
        f"expected an image of bundle {bundle[:12]} in {_repository()}, found none called "
        f"{', '.join(filter(None, names))}; check its commit out, `dvc repro --pull`, `python -m flows.inspect`, "
        "`make image`, `python -m flows.deliver push`"
    )


def _image(name: str) -> Image:
    separator = "@" if name.startswith("sha256:") else ":"
    told = json.loads(_call("skopeo", "inspect", f"docker://{_repository()}{separator}{name}"))
    return Image(told["Digest"], str((told["Labels"] or {}).get(LABEL)))


def _tags() -> list[str]:
    listed: list[str] = json.loads(_call("skopeo", "list-tags", f"docker://{_repository()}"))["Tags"]
    return listed


def _name(digest: str, name: str) -> None:
    image, there = f"docker://{_repository()}@{digest}", f"docker://{_repository()}:{name}"
    _call("skopeo", "copy", "--quiet", "--all", "--preserve-digests", image, there)
    say(f"{_repository()}:{name} is {digest}")


def _apply(environment: str, images: Mapping[str, str]) -> None:
    """Apply an environment's manifests with these images, and wait until they serve, where that is the target."""
    if not _on_kubernetes():
        return
    with TemporaryDirectory() as scratch:
        overlay = Path(shutil.copytree(MANIFESTS, Path(scratch, MANIFESTS.name)), environment)
        told = yaml.safe_load((overlay / "kustomization.yaml").read_text())
        told["images"] = [{"name": n, "newName": _repository(), "digest": d} for n, d in images.items()]
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(told))
        kubectl = ["kubectl", "--namespace", told["namespace"]]
        if config := os.environ.get("KUBE_CONFIG"):
            file = Path(scratch, "config")
            file.touch(0o600)
            file.write_text(config)
            kubectl += ["--kubeconfig", str(file)]
        say(_call(*kubectl, "apply", "--kustomize", str(overlay)))
        say(_call(*kubectl, "rollout", "status", "statefulset/serving", "--timeout", "10m"))


def _on_kubernetes() -> bool:
    target = os.environ.get("DEPLOY_TARGET") or "registry"
    if target not in ("registry", "kubernetes"):
        raise InputError(f"expected DEPLOY_TARGET to be registry or kubernetes, got {target}")
    return target == "kubernetes"


def _repository() -> str:
    if named := os.environ.get("IMAGE_REPOSITORY"):
        return named
    raise InputError("expected IMAGE_REPOSITORY to name where images go, as in ghcr.io/owner/name, found nothing")


def _call(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - podman, skopeo, kubectl
    except FileNotFoundError as error:
        raise InputError(f"expected {command[0]} on the path, found none; install it") from error
    if done.returncode:
        raise InputError(f"expected `{' '.join(command)}` to succeed, it said: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def _tell(**outputs: str) -> None:
    """Say what came out, and tell the next steps of a job of GitHub Actions."""
    lines = "".join(f"{name}={value}\n" for name, value in outputs.items())
    say(lines.strip())
    if file := os.environ.get("GITHUB_OUTPUT"):
        with Path(file).open("a") as told:
            told.write(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.deliver", description="Deliver an image.")
    actions = parser.add_subparsers(required=True)
    for action in (push, staging, find, production, status):
        sub = actions.add_parser(action.__name__, help=action.__doc__)
        sub.set_defaults(action=action)
        if action is find:
            sub.add_argument("version", nargs="?", metavar="vN", help="the entry; else the bundle on disk")
        if action not in (push, status):
            sub.add_argument("--digest", metavar="sha256:...", type=ledger.digest, help="this image, and no other")
    arguments = vars(parser.parse_args())
    run(ledger.decided(arguments.pop("action")), arguments, tracked=False, failed=2)
