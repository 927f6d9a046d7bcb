import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.clones import environment
from tests.container.conftest import ENGINE, RUN
from tests.delivery.workflows import GitHub

APPROVALS = [{"state": "approved", "user": {"login": "ada"}, "environments": [{"name": "production"}]}]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A home folder whose containers are pushed in plain HTTP to a registry that is empty at first, and its address."""
    folder, address = tmp_path_factory.mktemp("home"), f"127.0.0.1:{free_port()}"
    settings = folder / ".config/containers/registries.conf"
    settings.parent.mkdir(parents=True)
    plain = f'[[registry]]\nlocation = "{address}"\ninsecure = true\n'
    settings.write_text(f'unqualified-search-registries = ["docker.io"]\n{plain}')
    told = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}}}
    (folder / "registry.yml").write_text(json.dumps({**told, "http": {"addr": address}, "log": {"level": "error"}}))
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "registry.yml"], stdout=log, stderr=log)
    try:
        _await(f"http://{address}/v2/", process)
        yield folder, address
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder / "registry", ignore_errors=True)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urlopen(url):  # noqa: S310 - ours
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the registry did not start")


@pytest.fixture
def approvals() -> Iterator[str]:
    """GitHub's answer to who approved a run: ada; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(APPROVALS if self.path.endswith("/approvals") else []).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}"
        service.shutdown()


@pytest.fixture
def local_images(home: tuple[Path, str]) -> Iterator[None]:
    """What is pushed to the registry has no name on this machine after the test; names that it took go back."""
    before = named_images()
    yield
    after = named_images()
    pushed = {image for name, image in after.items() if name.startswith(home[1])}
    taken = [name for name, image in after.items() if image in pushed]
    subprocess.run([ENGINE, "rmi", "--force", *taken], capture_output=True, check=False)
    for name in before.keys() & taken:
        subprocess.run([ENGINE, "tag", before[name], name], capture_output=True, check=False)


def named_images() -> dict[str, str]:
    """The images of this machine by their names."""
    listing = [ENGINE, "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]
    lines = subprocess.run(listing, capture_output=True, check=True, text=True).stdout.splitlines()
    return dict(line.split() for line in lines if "<none>" not in line)


@pytest.fixture
def github(tmp_path: Path, home: tuple[Path, str], approvals: str, local_images: None) -> GitHub:  # noqa: ARG001
    """GitHub with no repository yet, whose runners have a `gh` that only notes what it is asked."""
    folder, registry = home
    (tools := tmp_path / "tools").mkdir()
    program = shlex.join([sys.executable, str(Path(__file__).with_name("gh.py"))])
    (tools / "gh").write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    (tools / "gh").chmod(0o755)
    env = {
        "HOME": str(folder),
        "PATH": os.pathsep.join([str(tools), environment()["PATH"]]),
        "RUN": shlex.join([str(Path(shutil.which(RUN[0]) or RUN[0]).absolute()), *RUN[1:]]),
        "GITHUB_API_URL": approvals,
        "GH_STATE": str(tmp_path),
    }
    return GitHub(tmp_path, {"IMAGE_REPOSITORY": f"{registry}/ours/rain", "ENGINE": ENGINE}, env)
