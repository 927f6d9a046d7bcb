"""Rollback: what flew before flies again, untrained and unchanged, by an entry of its own. Change here to ask more.
`python -m flows.rollback` exits with 0, with 1 where it refuses, with 2 where it could not.
"""

import argparse
from datetime import UTC, datetime

from flows import ledger, registry
from flows.approval import approved
from flows.history import red
from flows.ledger import Refused
from flows.promote import announce
from flows.stage import run, say


def rollback(by: str | None, because: str, to: str | None = None, image: str | None = None, once: bool = False) -> None:
    """Let the bundle fly that flew before the champion, or that of an earlier entry (`to`: as in v3). `image`: the
    digest of its image, else the one which that entry names. `once`: be content where that of `to` flies already."""
    approval = approved(by, because)
    ledger.tagger()
    flown = ledger.entries(fetch=True)
    registry.catch_up(flown)
    newest = ledger.newest(flown)
    if once and to and newest and newest.bundle in [entry.bundle for entry in flown if entry.tag == ledger.tag_of(to)]:
        say(f"{newest.tag}: bundle {newest.bundle[:12]} is the champion already")
        return
    entry = restored(flown, to)
    with ledger.bundle_of(entry):
        pass  # it is there, and it is what flew
    told = {**flown[entry], **approval, "bundle": entry.bundle, "action": "rollback"}
    told |= {"restores": told.get("restores") or entry.tag, "image": image or told.get("image")}
    emergency = "EMERGENCY, grounded: " if told.get("grounds") else ""
    commit = ledger.git("rev-parse", f"{entry.tag}^{{commit}}")
    subject = f"{emergency}Rolled back to {told['restores']}, {entry.bundle[:12]}"
    made = ledger.enter(told, commit=commit, subject=subject, at=datetime.now(UTC), flown=flown)
    what = f"{emergency}rolled back to {told['restores']}"
    announce(made, red(what) if emergency else what)


def restored(flown: ledger.Flown, to: str | None) -> ledger.Entry:
    """The entry whose bundle is to fly again; Refused where there is none, or it flies already."""
    newest, known = ledger.newest(flown), {entry.tag: entry for entry in flown}
    entry = ledger.before(flown) if to is None else known.get(ledger.tag_of(to))
    if entry is None:
        listed = ", ".join(known) or "nothing"
        raise Refused(f"expected an earlier entry to go back to ({listed} has flown), found no {to or 'other bundle'}")
    if newest and newest.bundle == entry.bundle:
        raise Refused(
            f"expected another bundle than the champion's, but {newest.tag} flies that of {entry.tag} already"
        )
    return entry


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.rollback", description=rollback.__doc__)
    parser.add_argument("--by", metavar="LOGIN", help="who approves; in GitHub Actions, whoever approved the run")
    parser.add_argument("--because", required=True, metavar="TEXT", help="the reason, for those who read it later")
    parser.add_argument("--to", metavar="vN", help="the entry to go back to; else what flew before the champion")
    parser.add_argument("--image", metavar="sha256:...", type=ledger.digest, help="its image; else the entry's")
    parser.add_argument("--once", action="store_true", help="be content where that of --to is the champion already")
    run(ledger.decided(rollback), vars(parser.parse_args()), tracked=False, failed=2)
