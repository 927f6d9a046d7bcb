"""Posting: the comment on the pull request that a run of GitHub Actions inspected. Change here to put it elsewhere.

It is one comment, found by its first line and its author, and changed from then on. Which pull request it is follows
from the run, and never from what the run left behind. It needs the command `gh`, logged in.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.stage import say
from pipeline.errors import InputError

MARK = "<!-- the inspection of this pull request -->"
_BOT = "github-actions[bot]"  # who writes with the token of a workflow, which may not ask who it is
_HERE = "repos/{owner}/{repo}"  # gh puts in the names of the repository at hand


def post(text: str, run: int) -> list[str]:
    """Put a comment on each open pull request whose head is what a run inspected, and return where it stands;
    InputError where GitHub does not answer, or knows no such run."""
    inspected = _gh(f"{_HERE}/actions/runs/{run}")
    me = _BOT if os.environ.get("GITHUB_ACTIONS") == "true" else _gh("user")["login"]
    return [_put(f"{MARK}\n{text}", number, me) for number in pull_requests(inspected)]


def pull_requests(run: dict[str, Any]) -> list[int]:
    """The open pull requests whose head is the commit of a run: none where it was pushed over, merged or closed. GitHub
    names them in the run only where they come from no fork."""
    head = run["head_repository"] or {"full_name": "/"}  # a fork may be gone by now
    owner = head["full_name"].partition("/")[0]
    listed = _gh(f"{_HERE}/pulls", "-X", "GET", "-f", "state=open", "-f", f"head={owner}:{run['head_branch']}")
    return [
        pull["number"]
        for pull in listed
        if pull["head"]["sha"] == run["head_sha"] and (pull["head"]["repo"] or {}).get("full_name") == head["full_name"]
    ]


def _put(body: str, number: int, me: str) -> str:
    pages = _gh(f"{_HERE}/issues/{number}/comments", "--paginate", "--slurp")
    known = [each for page in pages for each in page if each["body"].startswith(MARK) and each["user"]["login"] == me]
    where = f"issues/comments/{known[0]['id']}" if known else f"issues/{number}/comments"
    put = _gh(f"{_HERE}/{where}", "-X", "PATCH" if known else "POST", "--input", "-", given=json.dumps({"body": body}))
    return str(put["html_url"])


def _gh(*arguments: str, given: str = "") -> Any:
    try:
        done = subprocess.run(["gh", "api", *arguments], input=given, capture_output=True, text=True, check=False)  # noqa: S603, S607 - gh, as found
    except FileNotFoundError as error:
        raise InputError("expected the command gh, found none; install GitHub's CLI, and `gh auth login`") from error
    if done.returncode:
        raise InputError(f"expected `gh api {arguments[0]}` to answer, got: {' '.join(done.stderr.split())[-300:]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.post", description=post.__doc__)
    parser.add_argument("file", type=Path, help="the comment, as `python -m flows.comment` wrote it")
    parser.add_argument("--run", type=int, required=True, metavar="ID", help="the run of the workflow `check`")
    given = parser.parse_args()
    try:
        put = post(given.file.read_text(), given.run)
    except (OSError, InputError) as error:
        sys.stderr.write(f"post: {error}\n")
        sys.exit(2)
    say("\n".join(put) or "nothing posted: no open pull request has the head that this run inspected")
