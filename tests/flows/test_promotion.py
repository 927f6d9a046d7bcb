"""A model that really flies, and a forged one that does not, by the commands that a person types."""

import sys

from tests.problem.workshop import Workshop, intact, workshop

__all__ = ["intact", "workshop"]  # fixtures


def test_a_forged_report_does_not_fly_even_in_an_emergency_and_an_airworthy_model_does(workshop: Workshop) -> None:
    workshop.edit(".github/CODEOWNERS", lambda _: "* @ada\n")
    workshop.run("git", "commit", "--quiet", "--all", "--message", "owners")
    workshop.edit("reports/card.md", lambda text: text + "\nforged\n")
    workshop.dvc("commit", "--force", "--quiet")
    workshop.dvc("push", "--quiet")
    workshop.run("git", "add", "--all")
    workshop.run("git", "commit", "--quiet", "--message", "forged")
    command = (sys.executable, "-m", "flows.promote", "--by", "ada", "--because", "the first")
    done = workshop.run(*command, "--emergency", check=False, GITHUB_ACTIONS="false")
    assert done.returncode == 1
    assert "even in an emergency" in done.stderr
    assert workshop.run("git", "tag").stdout == ""
    workshop.run("git", "revert", "--no-edit", "HEAD")
    workshop.dvc("checkout", "--quiet", "--force")
    assert "model/v1: promoted: bundle" in workshop.run(*command, GITHUB_ACTIONS="false").stdout
    assert "the first" in workshop.run(sys.executable, "-m", "flows.history").stdout
