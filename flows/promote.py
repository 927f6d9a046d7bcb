"""Promotion: the bundle in the working tree becomes champion, once it is inspected again and a person has approved.
Change here to ask more. `python -m flows.promote` exits with 0, with 1 where it refuses, with 2 where it could not.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows import ledger, registry
from flows.approval import approved
from flows.history import red
from flows.ledger import Refused
from flows.recorded import lacking_in_remote
from flows.register import INSPECTED, LOCK, bundle_hash, described, uncommitted
from flows.stage import child_environment, run, say
from pipeline.canonical import file_hash
from pipeline.errors import InputError

METRICS = Path("reports/metrics.json")
_JUDGES = ("src", "flows")  # beside what goes into the model


def promote(
    by: str | None, because: str, emergency: bool = False, once: bool = False, image: str | None = None
) -> None:
    """Let the bundle on disk fly. `emergency`: although it is grounded, which is shown wherever it is. `once`: nothing
    is to be done where it flies already. `image`: the digest of the image that holds it."""
    approval = approved(by, because)
    ledger.tagger()
    flown = ledger.entries(fetch=True)
    registry.catch_up(flown)
    commit, bundle = ledger.git("rev-parse", "HEAD"), bundle_hash()
    if once and (newest := ledger.newest(flown)) and newest.bundle == bundle:
        say(f"{newest.tag}: bundle {bundle[:12]} is the champion already")
        return
    check_ready(flown, commit, bundle)
    verdict = inspected(flown, bundle)
    grounds = grounding(verdict, emergency=emergency)
    registry.register(bundle, described(bundle, []))
    told = {
        **{"bundle": bundle, "action": "emergency" if grounds else "promote", **approval, "restores": None},
        **{"image": image, "dvc.lock": verdict["dvc.lock"], "grounds": grounds, "waived": verdict["waived"]},
        **{"verdicts": verdict["gates"], "metrics": json.loads(METRICS.read_bytes())["model"]},
    }
    subject = f"EMERGENCY: {bundle[:12]} promoted though grounded" if grounds else f"Promoted {bundle[:12]}"
    entry = ledger.enter(told, commit=commit, subject=subject, at=datetime.now(UTC), flown=flown)
    announce(entry, red(f"EMERGENCY, grounded by {', '.join(grounds)}") if grounds else "promoted")


def announce(entry: ledger.Entry, what: str) -> None:
    """Say that an entry stands, and let the registry follow."""
    say(f"{entry.tag}: {what}: bundle {entry.bundle[:12]} is the champion")
    try:
        registry.follow(ledger.entries())
    except InputError as error:
        raise InputError(f"{entry.tag} stands, but the registry does not follow yet: {error}") from error


def check_ready(flown: ledger.Flown, commit: str, bundle: str) -> None:
    """Refuse what flies already, and what nobody else could check out and pull."""
    newest = ledger.newest(flown)
    if newest and newest.bundle == bundle:
        raise Refused(f"expected another bundle than the champion's, but {newest.tag} is {bundle[:12]} already")
    if changed := uncommitted(*_JUDGES):
        raise Refused(
            f"expected a working tree as it is committed, but {', '.join(changed)} differ; commit them (a promotion "
            "is a tag on a commit), or put them back"
        )
    with ledger.checked_out(commit) as clone:
        lacking = lacking_in_remote(clone)
    if lacking:
        raise Refused(
            f"expected all that dvc.lock records in DVC's remote, which lacks {', '.join(lacking[:5])}; run "
            "`dvc push` (and commit .dvc/store, where the remote lies in the repository)"
        )


def inspected(flown: ledger.Flown, bundle: str) -> dict[str, Any]:
    """The verdict of an inspection made now, of this bundle, against the newest of these entries."""
    code = subprocess.run([sys.executable, "-m", "flows.inspect"], env=child_environment(), check=False).returncode
    if code not in (0, 1):
        raise InputError("expected an inspection, it could not be made; see above")
    verdict: dict[str, Any] = json.loads(INSPECTED.read_bytes())
    now, newest = (bundle_hash(), file_hash(LOCK)), ledger.newest(flown)
    against = verdict["champion"].get("tag")
    same = (verdict["bundle"], verdict["dvc.lock"]) == now and bundle == now[0] and verdict["airworthy"] == (code == 0)
    if not same or (verdict["airworthy"] and against != (newest and newest.tag)):
        raise InputError(
            "expected the inspection of this bundle against the champion of this moment, but the files or the "
            "ledger changed meanwhile; run this again"
        )
    return verdict


def grounding(verdict: Mapping[str, Any], *, emergency: bool) -> list[str]:
    """The gates that ground a model which flies in an emergency; Refused where it may not fly."""
    if verdict["airworthy"]:
        return []
    failed = {gate["gate"]: gate["reason"] for gate in verdict["gates"] if not (gate["passed"] or gate["waived"])}
    forged = [name for name in ("hashes", "recorded") if name in failed]
    if emergency and failed and not forged:
        return list(failed)
    why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    remedy = "even in an emergency: these gates say what the model is" if emergency else "correct it, see inspection/"
    raise Refused(f"expected an airworthy model, this one is grounded ({why}); {remedy}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=promote.__doc__)
    parser.add_argument("--by", metavar="LOGIN", help="who approves; in GitHub Actions, whoever approved the run")
    parser.add_argument("--because", required=True, metavar="TEXT", help="the reason, for those who read it later")
    parser.add_argument("--emergency", action="store_true", help="although grounded; shown in red from then on")
    parser.add_argument("--once", action="store_true", help="be content where this bundle is the champion already")
    parser.add_argument("--image", metavar="sha256:...", type=ledger.digest, help="its image, for the ledger")
    run(ledger.decided(promote), vars(parser.parse_args()), tracked=False, failed=2)
