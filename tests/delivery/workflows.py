"""GitHub as far as our workflows need it: it runs their `run:` steps for real, in clones of a local origin. Change here
to understand more of their language."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.clones import ROOT, environment

EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}")
TOKEN = re.compile(r"'(?:[^']|'')*'|&&|\|\||!=|==|!|[()]|,|[\w.*-]+")
FUNCTIONS = ("always", "cancelled", "failure", "join", "success")
# What .ci/run has done with the same files, or what is only for GitHub's machines.
ELSEWHERE = ("make check", "make check-workflows", "make check-lock", "make test", "make test-image", "sudo ")
ENVIRONMENTS = (".venv", "serving/.venv", "serving/.venv-sklearn", ".github/.venv")


@dataclass
class Job:
    """A job that ran, or did not: the folder of its runner, and what it told the jobs after it."""

    workspace: Path
    result: str = "success"
    outputs: dict[str, str] = field(default_factory=dict)
    said: str = ""


@dataclass
class GitHub:
    """A repository with its variables; `uses:` steps are folder copies, or remembered in `used`."""

    folder: Path
    vars: Mapping[str, str]
    env: Mapping[str, str]  # of every runner
    used: list[str] = field(default_factory=list)
    runs: int = 0
    last: dict[str, Any] = field(default_factory=dict)  # the run of each workflow that may be run again

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.origin, capture_output=True, check=True, text=True)
        return done.stdout.strip()

    def clone(self, path: Path, revision: str = "main") -> Path:
        """A clone of the origin with this repository's environments, which are not to be installed again."""
        subprocess.run(["git", "clone", "--quiet", str(self.origin), str(path)], check=True)
        subprocess.run(["git", "checkout", "--quiet", revision], cwd=path, check=True)
        (path / ".git/info").mkdir(exist_ok=True)
        with (path / ".git/info/exclude").open("a") as excluded:
            for name in ENVIRONMENTS:
                if (ROOT / name).exists():
                    (path / name).symlink_to(ROOT / name)
                    excluded.write(f"/{name}\n")
        for lock in path.rglob("*.lock"):
            os.utime(lock, (0, 0))
        return path

    def run(self, name: str, event_name: str, event: Mapping[str, Any] | None = None, **inputs: Any) -> dict[str, Job]:
        """Run a workflow on main; what became of its jobs."""
        self.runs += 1
        read = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())
        ref = f"refs/heads/{(event or {}).get('branch', 'main')}"
        github = {"ref": ref, "sha": self.git("rev-parse", ref), "event_name": event_name, "event": event or {}}
        github |= {"token": "a token", "actor": "ada", "repository": "ours/rain", "run_id": str(self.runs)}
        scope = {"vars": self.vars, "secrets": {}, "inputs": inputs, "github": github}
        jobs: dict[str, Job] = {}
        self.last[name] = (read, scope, jobs)
        while waiting := [job for job in read["jobs"] if job not in jobs]:
            ready = next(job for job in waiting if jobs.keys() >= set(_needs(read["jobs"][job])))
            jobs[ready] = self._job(f"{name}-{ready}", read, read["jobs"][ready], scope, jobs)
        return jobs

    def again(self, name: str, job: str) -> Job:
        """Run a job of a workflow's last run again, on another runner: what the jobs before it gave stands."""
        read, scope, jobs = self.last[name]
        return self._job(f"{name}-{job}-again", read, read["jobs"][job], scope, jobs)

    def _job(self, name: str, read: Any, job: Any, scope: Mapping[str, Any], jobs: Mapping[str, Job]) -> Job:
        made = Job(self.folder / f"{self.runs}-{name}")
        needs = {need: {"result": jobs[need].result, "outputs": jobs[need].outputs} for need in _needs(job)}
        scope = {**scope, "needs": needs, "steps": {}}
        if not _holds(job.get("if"), scope, failed=any(need["result"] != "success" for need in needs.values())):
            made.result = "skipped"
            return made
        made.workspace.mkdir()
        env = {**self.env, **self._told(scope), **filled(read.get("env"), scope), **filled(job.get("env"), scope)}
        for step in job["steps"]:
            if _holds(step.get("if"), scope, failed=made.result == "failure"):
                code, outputs = self._step(made, step, env, scope)
                scope["steps"][step.get("id")] = {"outputs": outputs}
                if code and not value(step.get("continue-on-error", False), scope):
                    made.result = "failure"
        made.outputs = filled(job.get("outputs"), scope)
        return made

    def _told(self, scope: Mapping[str, Any]) -> dict[str, str]:
        names = ("actor", "event_name", "ref", "repository", "run_id", "sha")
        told = {f"GITHUB_{name.upper()}": scope["github"][name] for name in names}
        return {"GITHUB_ACTIONS": "true", "CI": "true", **told}

    def _step(
        self, job: Job, step: Any, env: Mapping[str, str], scope: Mapping[str, Any]
    ) -> tuple[int, dict[str, str]]:
        if "uses" in step:
            self._use(job, step["uses"].partition("@")[0], filled(step.get("with"), scope), scope["github"]["sha"])
            return 0, {}
        command = step["run"]
        assert not EXPRESSION.search(command), f"what a stranger wrote would become code: {command}"
        if command in ELSEWHERE or command.startswith("sudo "):
            return 0, {}
        outputs = self.folder / "output"
        outputs.write_text("")
        (temporary := self.folder / "temporary").mkdir(exist_ok=True)
        own = {**env, **filled(step.get("env"), scope), "GITHUB_OUTPUT": str(outputs), "RUNNER_TEMP": str(temporary)}
        where = job.workspace / step.get("working-directory", ".")
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command]
        began = time.perf_counter()
        done = subprocess.run(shell, cwd=where, env=environment(**own), capture_output=True, text=True, check=False)
        said = f"$ {command}  # {time.perf_counter() - began:.1f} s\n{done.stdout}{done.stderr}\n"
        sys.stdout.write(said)
        job.said += said
        lines = outputs.read_text().splitlines()
        return done.returncode, dict(line.split("=", 1) for line in lines)

    def _use(self, job: Job, action: str, given: Mapping[str, str], sha: str) -> None:
        artifact = self.folder / "artifacts" / given.get("name", "")
        if action == "actions/checkout":
            self.clone(job.workspace, given.get("ref", sha))
        elif action == "actions/upload-artifact":
            shutil.rmtree(artifact, ignore_errors=True)
            paths = [job.workspace / path for path in given["path"].split()]
            base = job.workspace if len(paths) > 1 else paths[0] if paths[0].is_dir() else paths[0].parent
            files = [
                file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
            ]
            for file in files:
                copy = artifact / file.relative_to(base)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        elif action == "actions/download-artifact":
            shutil.copytree(artifact, job.workspace / given.get("path", "."), dirs_exist_ok=True)
        else:
            self.used.append(f"{action} {json.dumps(given, sort_keys=True)}")


def _needs(job: Mapping[str, Any]) -> list[str]:
    needs = job.get("needs", [])
    return [needs] if isinstance(needs, str) else needs


def _holds(condition: Any, scope: Mapping[str, Any], *, failed: bool) -> bool:
    """Whether a job or a step runs; without a word about failures, only where there was none."""
    told = str(condition or "")
    found = value(told if "${{" in told else f"${{{{ {told or 'true'} }}}}", {**scope, "failed": failed})
    speaks = re.search(r"\b(always|cancelled|failure|success)\(\)", told)
    return bool(found) and (bool(speaks) or not failed)


def filled(given: Mapping[str, Any] | None, scope: Mapping[str, Any]) -> dict[str, str]:
    """A mapping of texts with their expressions resolved."""
    return {name: _text(value(text, scope)) for name, text in (given or {}).items()}


def value(text: Any, scope: Mapping[str, Any]) -> Any:
    """What a text stands for: of a single expression its value, else the text with each one filled in."""
    if not isinstance(text, str):
        return text
    whole = EXPRESSION.fullmatch(text.strip())
    if whole:
        return evaluated(whole[1], scope)
    return EXPRESSION.sub(lambda found: _text(evaluated(found[1], scope)), text)


def evaluated(expression: str, scope: Mapping[str, Any]) -> Any:
    """The value of an expression; GitHub's `&&` and `||` give what Python's `and` and `or` give."""
    words = {"&&": " and ", "||": " or ", "!": " not ", "true": "True", "false": "False", "null": "''"}
    python = ""
    for token in TOKEN.findall(expression):
        name = re.fullmatch(r"[A-Za-z_][\w.*-]*", token) and token not in (*words, *FUNCTIONS)
        python += f"found({token!r})" if name else words.get(token, token)
    failed = scope.get("failed", False)
    functions = {
        "always": lambda: True, "cancelled": lambda: False, "failure": lambda: failed, "success": lambda: not failed,
        "join": lambda items, separator: separator.join(items), "found": lambda name: _found(name, scope),
    }  # fmt: skip
    return eval(python, {"__builtins__": {}}, functions)  # noqa: S307 - the repository's own expressions


def _found(name: str, scope: Any) -> Any:
    """What a dotted name stands for, an empty text for nothing; `*` for each."""
    first, _, rest = name.partition(".")
    if first == "*":
        return [_found(rest, each) if rest else each for each in scope.values()]
    found = scope.get(first, "") if isinstance(scope, Mapping) else ""
    return _found(rest, found) if rest else found


def _text(found: Any) -> str:
    return str(found).lower() if isinstance(found, bool) else str(found)
