"""The registry on an MLflow server with passwords, whose database is PostgreSQL: run by .ci/run, by this file's name,
since `make test` asks for no PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import registry, tracking
from flows.promote import promote
from flows.register import register
from flows.rollback import rollback
from pipeline.errors import InputError
from tests.flows.hangar import MLFLOW_WARNS, Hangar, hangar, hangars, registry_now
from tests.flows.test_tracking import client, free_port

__all__ = ["hangar", "hangars"]  # fixtures

pytestmark = MLFLOW_WARNS

# What mlflow[auth] and a PostgreSQL database ask for beyond what is locked: the server's affair, not the project's.
SERVER = ["flask-wtf==1.3.0", "wtforms==3.3.2", "psycopg2-binary==2.9.13"]
PASSWORD = "correct horse battery"  # noqa: S105 - of a server that lives as long as this test
SETTINGS = """[mlflow]
default_permission = READ
database_uri = {database}
admin_username = keeper
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def binary(name: str) -> str:
    found = shutil.which(name) or next((str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), "")
    assert found, f"expected PostgreSQL's {name}, found none; apt-get install postgresql"
    return found


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A cluster of its own, with a database for the models and one for the users; its address, but for the database."""
    with tempfile.TemporaryDirectory(prefix="registry-") as home:
        command: list[str] = []
        if os.geteuid() == 0:  # as whom PostgreSQL does not run
            shutil.chown(home, "postgres")
            command = ["runuser", "-u", "postgres", "--"]
        port = free_port()
        listen = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [*command, binary("pg_ctl"), "--pgdata", f"{home}/data", "--wait"]
        subprocess.run([*command, binary("initdb"), "-D", f"{home}/data", "-U", "keeper", "--auth=trust"], check=True)
        subprocess.run([*control, "--log", f"{home}/log", "--options", listen, "start"], check=True)
        try:
            for database in ("models", "users"):
                create = [binary("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "keeper", database]
                subprocess.run(create, check=True)
            yield f"postgresql://keeper@127.0.0.1:{port}"
        finally:
            subprocess.run([*control, "--mode", "immediate", "stop"], check=True)


@pytest.fixture
def server(postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An MLflow server that asks for a password, in the environment of the flows."""
    packages = tmp_path / "packages"
    install = ["-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *SERVER]
    subprocess.run([sys.executable, *install], check=True)
    settings = tmp_path / "auth.ini"
    settings.write_text(SETTINGS.format(database=f"{postgresql}/users", password=PASSWORD))
    uri = f"http://127.0.0.1:{free_port()}"
    store = ["--backend-store-uri", f"{postgresql}/models", "--artifacts-destination", f"{tmp_path}/served"]
    command = ["-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1", "--port", uri.rpartition(":")[2]]
    env = os.environ | {
        **{"PYTHONPATH": str(packages), "MLFLOW_AUTH_CONFIG_PATH": str(settings)},
        **{"MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    }
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, *store], env=env, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    try:
        until = time.monotonic() + 120
        while not _answers(uri):
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "server.log").read_text()  # noqa: PT018
            time.sleep(0.3)
        tracking.check_server()
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _answers(uri: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", int(uri.rpartition(":")[2]))) == 0


def test_models_are_registered_promoted_taken_back_and_rebuilt_on_a_server_with_passwords(
    server: str, hangar: Hangar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with pytest.raises(InputError, match=r"expected MLflow's registry to answer, .*(401|[Cc]redential|authenticat)"):
        register()
    assert hangar.tags() == []
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "keeper")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    one = hangar.bundle()
    register()
    register()
    assert registry_now(server)["aliases"] == {"challenger": one}
    promote("ada", "the first")
    two = hangar.take("two")
    promote("ada", "the second")
    rollback("ada", "it was worse")
    before = registry_now(server)
    assert before["aliases"] == {"champion": one, "previous": two}
    assert len(before["versions"]) == 2
    client(server).delete_registered_model("toy")
    registry.registry()
    assert registry_now(server) == before
    registry.registry()
    assert registry_now(server) == before
