import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.approval import PLACEHOLDER, approved
from flows.ledger import Refused
from pipeline.errors import InputError


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=Tests", "-c", "user.email=tests@example.org", *arguments], check=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository that names its owners, outside GitHub Actions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_RUN_ID", raising=False)
    Path(".github").mkdir()
    Path(".github/CODEOWNERS").write_text("# @nobody\n* @ada @Grace @org/team them@example.org # us: @eve\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "owners")
    return tmp_path


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("by", ["ada", "@ada", "grace", "GRACE"])
def test_an_owner_may_let_a_model_fly(by: str) -> None:
    assert approved(by, " better\n in fog ") == {"by": by.strip("@"), "because": "better in fog", "run": None}


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("by", ["mallory", "org/team", "us", "ada@example.org"])
def test_any_other_name_may_not(by: str) -> None:
    with pytest.raises(
        Refused, match=r"one of the approvers .* \(ada, grace\), got .*; let one of them .*a single one"
    ):
        approved(by, "better")


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("because", ["", " \n"])
def test_without_a_reason_nothing_flies(because: str) -> None:
    with pytest.raises(Refused, match="expected a reason, got an empty one"):
        approved("ada", because)


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("by", [None, "", "@"])
def test_without_a_name_nothing_flies(by: str | None) -> None:
    with pytest.raises(Refused, match="expected an approver, got none; name one: --by LOGIN"):
        approved(by, "better")


@pytest.mark.usefixtures("repository")
def test_the_placeholder_that_the_repository_ships_with_is_refused_by_name() -> None:
    Path(".github/CODEOWNERS").write_text(f"* @{PLACEHOLDER}\n")
    git("commit", "--quiet", "--all", "--message", "as shipped")
    with pytest.raises(Refused, match=f"found the placeholder @{PLACEHOLDER}; write the logins"):
        approved(PLACEHOLDER, "better")


@pytest.mark.usefixtures("repository")
def test_who_added_his_own_name_without_committing_it_is_no_approver() -> None:
    Path(".github/CODEOWNERS").write_text("* @mallory\n")
    with pytest.raises(Refused, match="got mallory"):
        approved("mallory", "mine")
    git("rm", "--quiet", "--force", ".github/CODEOWNERS")
    git("commit", "--quiet", "--message", "no owners")
    with pytest.raises(Refused, match="it is not committed"):
        approved("mallory", "mine")


def review(login: str, state: str = "approved", environment: str = "production") -> dict[str, Any]:
    return {"state": state, "comment": "", "environments": [{"name": environment}], "user": {"login": login}}


Answer = Callable[[int, object], list[str]]


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """GitHub's interface, as far as a run's approvals go, and a job's environment that leads to it."""
    said: list[tuple[int, object]] = []
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(said[-1][0])
            self.end_headers()
            self.wfile.write(json.dumps(said[-1][1]).encode())

        def log_message(self, *_: object) -> None:
            pass

    def answer(status: int, reviews: object) -> list[str]:
        said.append((status, reviews))
        return asked

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        job = {
            "GITHUB_ACTIONS": "true",
            "GITHUB_REPOSITORY": "us/models",
            "GITHUB_RUN_ID": "7",
            "GITHUB_TOKEN": "t0ken",
        }
        for name, value in {**job, "GITHUB_API_URL": f"http://127.0.0.1:{server.server_port}"}.items():
            monkeypatch.setenv(name, value)
        yield answer
        server.shutdown()


@pytest.mark.usefixtures("repository")
def test_in_actions_the_name_is_that_of_who_approved_the_run_for_production(github: Answer) -> None:
    others = [review("mallory"), review("ada", "rejected"), review("ada", environment="staging")]
    asked = github(200, [*others, review("Grace")])
    assert approved(None, "better") == {"by": "Grace", "because": "better", "run": "7"}
    assert asked == ["/repos/us/models/actions/runs/7/approvals Bearer t0ken"]


@pytest.mark.usefixtures("repository")
def test_in_actions_no_name_can_be_given(github: Answer) -> None:
    github(200, [review("ada")])
    with pytest.raises(Refused, match="expected no --by in GitHub Actions, got 'ada'"):
        approved("ada", "better")


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("reviews", [[], [review("ada", "rejected")], [review("ada", environment="staging")]])
def test_a_run_that_nobody_approved_for_production_is_refused(github: Answer, reviews: list[Any]) -> None:
    github(200, reviews)
    with pytest.raises(Refused, match="expected somebody to have approved this run for the environment 'production'"):
        approved(None, "better")


@pytest.mark.usefixtures("repository")
def test_a_run_that_a_stranger_approved_is_refused(github: Answer) -> None:
    github(200, [review("mallory")])
    with pytest.raises(Refused, match="got mallory"):
        approved(None, "better")


@pytest.mark.usefixtures("repository")
def test_where_github_does_not_tell_nothing_flies(github: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    github(403, {"message": "Resource not accessible"})
    with pytest.raises(InputError, match=r"expected GitHub to tell who approved this run, .* 403.*; give the job"):
        approved(None, "better")
    monkeypatch.delenv("GITHUB_TOKEN")
    with pytest.raises(InputError, match="expected 'GITHUB_TOKEN' in the environment, found none"):
        approved(None, "better")
