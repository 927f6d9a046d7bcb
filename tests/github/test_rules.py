"""What every workflow, rule and manifest must keep, whoever writes the next one."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import Settings, read_settings
from tests.clones import ROOT

FOLDER = ROOT / ".github/workflows"
FILES = sorted(FOLDER.glob("*.yml"))
WORKFLOWS: dict[str, dict[Any, Any]] = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
JOBS = {f"{name} / {job}": told for name, workflow in WORKFLOWS.items() for job, told in workflow["jobs"].items()}
STEPS = [(name, step) for name, job in JOBS.items() for step in job["steps"]]
# Who may write what; that another job may is a change of these lines.
WRITES = {
    "comment / comment": {"pull-requests"},
    "promote / build": {"packages", "id-token", "attestations"},
    "promote / fly": {"contents", "packages"},
    "rollback / rollback": {"contents", "packages"},
    "security / code": {"security-events"},
    "train / train": {"contents", "pull-requests"},
}
DOCKERFILE = (ROOT / "serving/Dockerfile").read_text()


def triggers(workflow: dict[Any, Any]) -> Any:
    return workflow[True]  # what YAML 1.1 makes of `on`


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_its_commit_with_the_version_beside(path: Path) -> None:
    for line in re.findall(r"uses: (.*)", path.read_text()):
        assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


def test_an_action_has_one_pin() -> None:
    pins = {step["uses"].partition("@")[::2] for _, step in STEPS if "uses" in step}
    by_repository = {("/".join(action.split("/")[:2]), commit) for action, commit in pins}
    assert len(by_repository) == len({repository for repository, _ in by_repository})


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_nothing_and_does_not_run_twice_at_once(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    assert WORKFLOWS[name]["concurrency"]["group"]
    assert WORKFLOWS[name]["name"] == name


@pytest.mark.parametrize("name", JOBS)
def test_a_job_ends_and_may_only_what_it_says(name: str) -> None:
    assert JOBS[name]["timeout-minutes"] <= 60
    permissions = JOBS[name]["permissions"]
    assert set(permissions.values()) <= {"read", "write"}
    assert {scope for scope, level in permissions.items() if level == "write"} == WRITES.get(name, set())


@pytest.mark.parametrize(("name", "step"), [(n, s) for n, s in STEPS if "run" in s], ids=lambda part: str(part)[:60])
def test_a_step_is_one_command_that_a_person_can_type(name: str, step: dict[str, Any]) -> None:
    assert "\n" not in step["run"].strip(), name
    assert not re.search(r"\$\{\{|[;|]|&&|\$\(|`", step["run"]), name


@pytest.mark.parametrize(("name", "step"), STEPS, ids=lambda part: str(part)[:60])
def test_only_a_job_that_pushes_keeps_its_token_in_the_clone(name: str, step: dict[str, Any]) -> None:
    if step.get("uses", "").startswith("actions/checkout@"):
        pushes = "contents" in WRITES.get(name, set())
        assert step.get("with", {}).get("persist-credentials", True) is pushes


@pytest.mark.parametrize("path", [path for path in FILES if "pull_request" in triggers(WORKFLOWS[path.stem])], ids=str)
def test_no_secret_is_near_the_code_of_a_pull_request(path: Path) -> None:
    assert "secrets." not in path.read_text()
    assert "pull_request_target" not in path.read_text()


@pytest.mark.parametrize("name", [name for name, writes in WRITES.items() if "packages" in writes])
def test_a_job_that_pushes_an_image_is_off_until_a_variable_says_where(name: str) -> None:
    workflow, _, job = name.partition(" / ")
    jobs, asked = WORKFLOWS[workflow]["jobs"], [job]
    for waiting in asked:  # with a job that is off, those that wait for it are
        needs = jobs[waiting].get("needs", [])
        asked += [needs] if isinstance(needs, str) else needs
    assert any("vars.IMAGE_REPOSITORY" in str(jobs[one].get("if")) for one in asked)


def test_the_check_that_main_requires_waits_for_all_others_and_is_never_skipped() -> None:
    rules = {rule["type"]: rule.get("parameters") for rule in ruleset("main")["rules"]}
    (required,) = rules["required_status_checks"]["required_status_checks"]
    jobs = WORKFLOWS["check"]["jobs"]
    (summary,) = (job for job, told in jobs.items() if told.get("name", job) == required["context"])
    assert set(jobs[summary]["needs"]) == set(jobs) - {summary}
    assert "always()" in jobs[summary]["if"]  # one that is skipped counts as passed
    assert rules["pull_request"]["require_code_owner_review"] is True
    assert {"deletion", "non_fast_forward"} <= set(rules)


def test_nobody_may_delete_or_move_an_entry_of_the_ledger() -> None:
    rules = ruleset("ledger")
    assert (rules["target"], rules["bypass_actors"]) == ("tag", [])
    assert rules["conditions"]["ref_name"]["include"] == ["refs/tags/model/v*"]
    assert {rule["type"] for rule in rules["rules"]} == {"deletion", "update", "non_fast_forward"}


def test_the_deploy_key_alone_adds_an_entry_to_the_ledger() -> None:
    rules = ruleset("entries")
    assert (rules["target"], rules["rules"]) == ("tag", [{"type": "creation"}])
    assert rules["bypass_actors"] == [{"actor_type": "DeployKey", "bypass_mode": "always"}]
    assert "refs/tags/model/*" in rules["conditions"]["ref_name"]["include"]


def test_the_deploy_key_is_a_secret_of_environments_which_take_main_alone() -> None:
    keyed = {name for name, step in STEPS if "secrets.PUSH_KEY" in str(step)}
    assert {JOBS[name].get("environment") for name in keyed} == {"production", "training"}
    told = (ROOT / "docs/runbook.md").read_text()
    for environment in ("production", "training"):
        assert f"environments/{environment}/deployment-branch-policies -f name=main" in told
        assert f"gh secret set PUSH_KEY --env {environment}" in told


@pytest.mark.parametrize("name", sorted({name for name, job in JOBS.items() if "secrets." in str(job)}))
def test_a_job_that_has_a_secret_has_an_environment_for_it(name: str) -> None:
    assert JOBS[name].get("environment") in ("staging", "production", "training")


def ruleset(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((ROOT / f".github/rulesets/{name}.json").read_text())
    assert (told["name"], told["enforcement"]) == (name, "active")
    return told


def test_the_rules_are_made_once_and_then_kept_up(tmp_path: Path) -> None:
    """`gh` stands for GitHub, which knows the rules of main, under 7."""
    said = tmp_path / "said"
    (tmp_path / "gh").write_text(f'#!/bin/sh\necho "$*" >> {said}\ncase "$*" in *\'== "main"\'*) echo 7;; esac\n')
    (tmp_path / "gh").chmod(0o755)
    subprocess.run(["make", "rules"], cwd=ROOT, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert [line for line in said.read_text().splitlines() if "--method" in line] == [
        "api --silent --method POST repos/{owner}/{repo}/rulesets --input .github/rulesets/entries.json",
        "api --silent --method POST repos/{owner}/{repo}/rulesets --input .github/rulesets/ledger.json",
        "api --silent --method PUT repos/{owner}/{repo}/rulesets/7 --input .github/rulesets/main.json",
    ]


def commands(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


@pytest.mark.parametrize(("job", "enters"), [("promote / fly", "promote"), ("rollback / rollback", "rollback")])
def test_an_image_is_found_and_verified_before_its_entry_is_made(job: str, enters: str) -> None:
    wanted = ("flows.deliver find", "gh attestation verify", f"flows.{enters} ", "flows.deliver production")
    found, verified, entered, delivered = (
        next(number for number, command in enumerate(commands(job)) if step in command) for step in wanted
    )
    assert max(found, verified) < entered < delivered
    assert '--image "$DIGEST"' in commands(job)[entered]


def test_another_model_than_the_committed_one_passes_no_check() -> None:
    order = [command.split(" ", 1)[-1] for command in commands("check / model")]
    assert order.index("-m dvc repro --pull") + 1 == order.index("diff --exit-code dvc.lock")


@pytest.mark.parametrize(("name", "step"), [(n, s) for n, s in STEPS if "flows.registry" in s.get("run", "")], ids=str)
def test_a_registry_that_lacks_a_bundle_of_long_ago_stops_no_job(name: str, step: dict[str, Any]) -> None:
    assert step["continue-on-error"] is True, name


def locks() -> list[str]:
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.lock"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split()
    return [name for name in listed if name != "dvc.lock"]


def test_dependabot_knows_every_folder_with_packages_and_waits_a_week() -> None:
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    folders = {u["package-ecosystem"]: set(u.get("directories", [u.get("directory")])) for u in updates}
    assert {f"/{Path(lock).parent}".removesuffix(".") for lock in locks()} == folders["pip"]
    assert folders["docker"] == folders["docker-compose"] == {"/serving"}
    assert all(update["cooldown"]["default-days"] >= 7 for update in updates)


def test_every_lock_is_audited() -> None:
    named = re.search(r"^LOCKS := ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named
    assert set(named[1].replace("\\", "").split()) == set(locks())


def manifests(name: str) -> dict[str, Any]:
    return {told["kind"]: told for told in yaml.safe_load_all((ROOT / f"deploy/{name}.yaml").read_text())}


def pod(name: str) -> dict[str, Any]:
    told: dict[str, Any] = manifests(name)["StatefulSet"]["spec"]["template"]["spec"]
    return told


def variables(told: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in told["containers"][0].get("env", [])}


def test_kubernetes_runs_what_the_image_is() -> None:
    user, port = re.search(r"^USER (\d+):", DOCKERFILE, re.M), re.search(r"^EXPOSE (\d+)", DOCKERFILE, re.M)
    data = re.search(r"^VOLUME (\S+)", DOCKERFILE, re.M)
    assert user
    assert port
    assert data
    told = pod("base/serving")
    container = told["containers"][0]
    security = told["securityContext"]
    assert {security[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user[1])}
    assert [listened["containerPort"] for listened in container["ports"]] == [int(port[1])]
    assert data[1] in [mount["mountPath"] for mount in container["volumeMounts"]]
    health = (ROOT / "serving/app.py").read_text()
    for probe in ("livenessProbe", "readinessProbe"):
        assert f'"{container[probe]["httpGet"]["path"]}": ' in health


def test_kubernetes_names_settings_that_the_service_has() -> None:
    """And none of those that it would refuse: Kubernetes makes SERVING_PORT of a service named serving."""
    given = variables(pod("base/serving")) | variables(pod("staging/shadow"))
    settings = read_settings(given)
    assert str(settings.keys_file) == "/keys/keys.toml"
    assert settings.challenger_dir is not None
    assert pod("base/serving")["enableServiceLinks"] is False
    stop = pod("base/serving")["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod("base/serving")["terminationGracePeriodSeconds"] > stop + Settings().shutdown_s


@pytest.mark.parametrize("name", ["base/serving", "staging/shadow"])
def test_kubernetes_lets_a_container_do_nothing_else(name: str) -> None:
    told = pod(name)
    for container in [*told.get("initContainers", []), *told["containers"]]:
        if "image" in container:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}


def test_the_next_champions_image_hands_over_its_bundle_with_what_stands_beside(tmp_path: Path) -> None:
    told = pod("staging/shadow")
    init, mounted = told["initContainers"][0], told["initContainers"][0]["volumeMounts"][0]["mountPath"]
    copied = re.findall(r"^COPY --from=service /app/(\w+) ", DOCKERFILE, re.M)
    for name in ("bundle", "inspection", "reports"):
        assert name in copied
        (tmp_path / "app" / name).mkdir(parents=True)
        (tmp_path / "app" / name / "file").write_text(name)
    script = init["args"][0].replace(mounted, str(tmp_path / "volume"))
    for _ in range(2):  # a pod that starts again has its volume still
        subprocess.run([*init["command"], script], cwd=tmp_path / "app", check=True)
    assert Path(variables(told)["SERVING_CHALLENGER_DIR"]) == Path(mounted) / "bundle"
    assert {path.parent.name for path in (tmp_path / "volume").glob("*/file")} == {"bundle", "inspection", "reports"}


@pytest.fixture
def github(tmp_path: Path) -> Path:
    """A repository that has nothing but .github/, and its tools."""
    subprocess.run(["make", "--silent", ".github/.venv/.ready"], cwd=ROOT, check=True)
    shutil.copytree(ROOT / ".github", tmp_path / ".github", ignore=shutil.ignore_patterns(".venv"))
    (tmp_path / ".github/.venv").symlink_to(ROOT / ".github/.venv")
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "sound", "broken", "said"),
    [
        ("workflows/security.yml", "timeout-minutes:", "timeout:", 'unexpected key "timeout"'),
        ("workflows/security.yml", "run: make audit", "run: echo ${{ github.head_ref }}", "potentially untrusted"),
        ("workflows/security.yml", "vars.CODE_SECURITY", "var.CODE_SECURITY", 'undefined variable "var"'),
        ("dependabot.yml", "cooldown: {default-days: 7}", "", "dependabot-cooldown"),
        ("dependabot.yml", "interval: weekly", "interval: sometimes", "'sometimes' is not one of"),
    ],
)
def test_a_broken_workflow_is_refused(github: Path, name: str, sound: str, broken: str, said: str) -> None:
    path = github / ".github" / name
    assert sound in path.read_text()
    path.write_text(path.read_text().replace(sound, broken))
    command = ["make", "-o", "check-deploy", "-o", ".github/.venv/.ready", "check-workflows"]
    done = subprocess.run(command, cwd=github, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
