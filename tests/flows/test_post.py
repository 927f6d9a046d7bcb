import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.post import MARK, post
from pipeline.errors import InputError
from tests.clones import ROOT

# The command gh, over a file that holds what GitHub knows; each call is written down.
GH = """
import json, pathlib, sys
state = pathlib.Path(__file__).with_name("github.json")
github = json.loads(state.read_text())
assert sys.argv[1] == "api"
path, *options = sys.argv[2:]
github["calls"].append([path, *options])
path = path.removeprefix("repos/{owner}/{repo}/")
verb = options[options.index("-X") + 1] if "-X" in options else "GET"
body = json.load(sys.stdin)["body"] if "--input" in options else None
answer = None
if path == "user":
    answer = {"login": "ada"}
elif path == "actions/runs/7":
    answer = github["run"]
elif path == "pulls" and "state=open" in options:
    head = next(option.removeprefix("head=") for option in options if option.startswith("head="))
    answer = [p for p in github["pulls"] if head == p["head"]["label"]]
elif path.startswith("issues/comments/") and verb == "PATCH":
    answer = next(c for c in github["comments"] if c["id"] == int(path.split("/")[-1]))
    answer["body"] = body
elif path.endswith("/comments") and verb == "POST":
    number = int(path.split("/")[1])
    answer = {"id": 100 + len(github["comments"]), "issue": number, "body": body, "user": {"login": github["me"]}}
    answer["html_url"] = f"https://github.com/org/repo/pull/{number}#issuecomment-{answer['id']}"
    github["comments"].append(answer)
elif path.endswith("/comments"):
    answer = [[c] for c in github["comments"] if c["issue"] == int(path.split("/")[1])] or [[]]
state.write_text(json.dumps(github))
if answer is None:
    sys.exit("gh: Not Found (HTTP 404)")
print(json.dumps(answer))
"""


class GitHub:
    """What GitHub knows, in a file beside the command."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "github.json"
        (folder / "gh.py").write_text(GH)
        program = shlex.join([sys.executable, str(folder / "gh.py")])
        (folder / "gh").write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        (folder / "gh").chmod(0o755)
        run = {"head_sha": "c0ffee", "head_branch": "better", "head_repository": {"full_name": "eve/fork"}}
        self.set(run=run, pulls=[pull(5)], comments=[], calls=[], me="github-actions[bot]")

    def get(self) -> dict[str, Any]:
        known: dict[str, Any] = json.loads(self.state.read_text())
        return known

    def set(self, **changed: Any) -> None:
        known = self.get() if self.state.exists() else {}
        self.state.write_text(json.dumps(known | changed))

    def bodies(self) -> list[tuple[int, str]]:
        return [(each["issue"], each["body"]) for each in self.get()["comments"]]


def pull(number: int, sha: str = "c0ffee", repo: str = "eve/fork") -> dict[str, Any]:
    head = {"sha": sha, "repo": {"full_name": repo} if repo else None, "label": f"{repo.partition('/')[0]}:better"}
    return {"number": number, "head": head}


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitHub:
    """In a job of GitHub Actions, with gh first on the path."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    return GitHub(tmp_path)


def test_the_comment_is_made_once_and_changed_from_then_on(github: GitHub) -> None:
    assert post("## first", 7) == ["https://github.com/org/repo/pull/5#issuecomment-100"]
    assert post("## second", 7) == ["https://github.com/org/repo/pull/5#issuecomment-100"]
    assert github.bodies() == [(5, f"{MARK}\n## second")]


def test_comments_of_others_stay_as_they_are_even_with_the_mark(github: GitHub) -> None:
    others = [
        {"id": 1, "issue": 5, "body": f"{MARK}\nmine", "user": {"login": "eve"}},
        {"id": 2, "issue": 5, "body": f"of another workflow {MARK}", "user": {"login": "github-actions[bot]"}},
    ]
    github.set(comments=others)
    post("## ours", 7)
    assert github.get()["comments"][:2] == others
    assert github.bodies()[2:] == [(5, f"{MARK}\n## ours")]


@pytest.mark.parametrize(
    "pulls", [[], [pull(5, sha="pushed over")], [pull(5, repo="eve/another-fork")], [pull(5, repo="")]]
)
def test_a_run_whose_commit_is_no_longer_the_head_of_an_open_pull_request_is_not_told(
    pulls: list[dict[str, Any]], github: GitHub
) -> None:
    github.set(pulls=pulls)
    assert post("## old", 7) == []
    assert github.bodies() == []


def test_the_pull_request_is_that_of_the_head_and_not_another_one_of_the_same_fork(github: GitHub) -> None:
    github.set(pulls=[pull(4, sha="other"), pull(5), pull(6, repo="ada/fork")])
    post("## this", 7)
    assert [number for number, _ in github.bodies()] == [5]


def test_a_fork_that_is_gone_has_no_pull_request_to_tell(github: GitHub) -> None:
    github.set(run={"head_sha": "c0ffee", "head_branch": "better", "head_repository": None})
    assert post("## gone", 7) == []


def test_by_hand_the_comment_is_that_of_whoever_is_logged_in(github: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS")
    github.set(me="ada")
    for text in ("## first", "## second"):
        post(text, 7)
    assert github.bodies() == [(5, f"{MARK}\n## second")]


def test_a_run_that_github_does_not_know_is_an_error(github: GitHub) -> None:
    assert github
    with pytest.raises(InputError, match=r"expected `gh api repos/.*/runs/8` to answer, got: gh: Not Found"):
        post("## lost", 8)


def test_without_gh_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="expected the command gh, found none; install GitHub's CLI"):
        post("## none", 7)


def test_the_program_says_where_the_comment_stands_and_ends_with_2_where_it_cannot_post(
    github: GitHub, tmp_path: Path
) -> None:
    (tmp_path / "comment.md").write_text("## told ✂️\n")

    def run(name: str, number: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "flows.post", str(tmp_path / name), "--run", number]
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/src"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert run("comment.md", "7") == (0, "https://github.com/org/repo/pull/5#issuecomment-100\n", "")
    assert github.bodies() == [(5, f"{MARK}\n## told ✂️\n")]
    github.set(pulls=[])
    assert run("comment.md", "7")[1].startswith("nothing posted: no open pull request")
    assert run("none.md", "7")[::2] == (2, f"post: [Errno 2] No such file or directory: '{tmp_path / 'none.md'}'\n")
    assert run("comment.md", "8")[0] == 2
