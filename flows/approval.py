"""Who may let a model fly, and who did: the logins in .github/CODEOWNERS. Change here to ask elsewhere.

In GitHub Actions the name is that of whoever approved the run for the environment `production`; elsewhere it is given.
"""

import json
import os
import re
from typing import Any
from urllib.request import Request, urlopen

from flows import ledger
from flows.ledger import Refused
from pipeline.errors import InputError

OWNERS = ".github/CODEOWNERS"
PLACEHOLDER = "your-github-login"
ENVIRONMENT = "production"


def approved(by: str | None, because: str) -> dict[str, str | None]:
    """The approver, the reason, and the run of GitHub Actions, as the ledger keeps them; Refused where one of the first
    two will not do."""
    reason = " ".join(because.split())
    if not reason:
        raise Refused("expected a reason, got an empty one; say it: --because TEXT")
    owners, names = _owners(), _names(by)
    known = [name for name in names if name.lower() in owners]
    if not known:
        raise Refused(
            f"expected one of the approvers in {OWNERS} as committed ({', '.join(owners) or 'it names none'}), got "
            f"{', '.join(names)}; let one of them approve, or add the login there (a single one: teams and addresses "
            "do not count)"
        )
    return {"by": known[0], "because": reason, "run": os.environ.get("GITHUB_RUN_ID")}


def _owners() -> list[str]:
    try:
        lines = ledger.git("show", f"HEAD:{OWNERS}").splitlines()
    except InputError as error:
        raise Refused(f"expected the approvers in {OWNERS}, but it is not committed ({error}); commit it") from error
    words = [word.lower() for line in lines for word in line.partition("#")[0].split()[1:]]
    owners = list(dict.fromkeys(word[1:] for word in words if re.fullmatch(r"@[a-z0-9-]+", word)))
    if PLACEHOLDER in owners:
        raise Refused(
            f"expected the approvers of this project in {OWNERS}, found the placeholder @{PLACEHOLDER}; write the "
            "logins of those who may let a model fly in its place, and commit it"
        )
    return owners


def _names(by: str | None) -> list[str]:
    if os.environ.get("GITHUB_ACTIONS") != "true":
        if not (by or "").strip("@ "):
            raise Refused("expected an approver, got none; name one: --by LOGIN")
        return [str(by).strip("@ ")]
    if by is not None:
        raise Refused(f"expected no --by in GitHub Actions, got '{by}'; the name is that of the run's approver")
    names = [
        review["user"]["login"]
        for review in _reviews()
        if review["state"] == "approved" and ENVIRONMENT in [where["name"] for where in review["environments"]]
    ]
    if not names:
        raise Refused(
            f"expected somebody to have approved this run for the environment '{ENVIRONMENT}', found nobody; give that "
            "environment required reviewers, and this job that environment"
        )
    return names


def _reviews() -> list[dict[str, Any]]:
    try:
        where = "{GITHUB_API_URL}/repos/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}/approvals".format_map(
            os.environ
        )
        headers = {"Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}", "Accept": "application/vnd.github+json"}
        with urlopen(Request(where, headers=headers), timeout=30) as answer:  # noqa: S310 - GitHub's own address
            reviews: list[dict[str, Any]] = json.load(answer)
    except KeyError as error:
        raise InputError(f"expected {error} in the environment, found none; pass it to this step of the job") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected GitHub to tell who approved this run, {where} gave: {error}; give the job `actions: read`"
        ) from error
    return reviews
