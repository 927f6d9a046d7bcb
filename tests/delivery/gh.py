"""GitHub's CLI as far as the workflows use it: notes of each call in the folder GH_STATE, artifacts from there, and the
comment on the one pull request. Change here to answer more."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

STATE = Path(os.environ["GH_STATE"])


def main(arguments: list[str]) -> None:
    with (STATE / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if arguments[:2] == ["run", "download"]:
        given = dict(zip(arguments[3::2], arguments[4::2], strict=True))
        shutil.copytree(STATE / "artifacts" / given["--name"], given["--dir"], dirs_exist_ok=True)
    elif arguments[:2] == ["release", "upload"]:
        if missing := [name for name in arguments[3:] if not name.startswith("--") and not Path(name).exists()]:
            sys.exit(f"no such files: {', '.join(missing)}")
    elif arguments[0] == "api":
        sys.stdout.write(json.dumps(answer(arguments[1].removeprefix("repos/{owner}/{repo}/"), arguments)))


def answer(route: str, arguments: list[str]) -> Any:
    kept, head = STATE / "comments.json", json.loads((STATE / "head.json").read_text())
    comments = json.loads(kept.read_text()) if kept.exists() else []
    if route.startswith("actions/runs/"):
        return {"head_repository": {"full_name": "ours/rain"}, **head}
    if route == "pulls":
        return [{"number": 1, "head": {"sha": head["head_sha"], "repo": {"full_name": "ours/rain"}}}]
    if "--input" not in arguments:
        return [comments]
    url = "https://github.invalid/ours/rain/pull/1"
    comments.append({"id": 1, "user": {"login": "github-actions[bot]"}, "html_url": url, **json.load(sys.stdin)})
    kept.write_text(json.dumps(comments[-1:]))
    return comments[-1]


if __name__ == "__main__":
    main(sys.argv[1:])
