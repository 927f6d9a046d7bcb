"""Acts on the champion, and a challenger that is worse."""

import json
from contextlib import chdir
from typing import Any

import yaml

from flows.evaluate import bundle_hash, read_params
from flows.inspect import duel_with_champion
from tests.problem.workshop import Workshop


def crown(workshop: Workshop) -> None:
    """Let the bundle on disk fly: commit what records it, push it, and enter it in the ledger."""
    workshop.dvc("commit", "--force", "--quiet")
    workshop.dvc("push", "--quiet")
    workshop.run("git", "add", "--all")
    workshop.run("git", "commit", "--quiet", "--allow-empty", "--message", "a champion")
    with chdir(workshop.path):
        message = f"Promoted\n\n{json.dumps({'bundle': bundle_hash()})}"
    workshop.run("git", "tag", "--annotate", "model/v1", "--message", message)


def champion(workshop: Workshop) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(workshop["inspection/gates.json"].read_text())["champion"]
    return found


def weaken(told: Any) -> None:
    told["params"]["max_iter"] = 5


def change_a_little(told: Any) -> None:
    told["params"]["max_iter"] -= 1


def test_a_model_worse_than_the_champion_by_the_margin_and_a_little(workshop: Workshop, sabotaged: bool) -> None:
    crown(workshop)
    workshop.edit_json("tuning/best.json", weaken)
    workshop.fly("train")
    with chdir(workshop.path):
        duel = duel_with_champion(read_params())
    assert duel is not None
    assert duel.gain.low < 0
    just = round(-duel.gain.low, 6) + (-2e-6 if sabotaged else 2e-6)
    workshop.edit("params.yaml", lambda text: text.replace("margin: 0.01\n", f"margin: {just:.6f}\n"))
    workshop.judged()
    workshop.record()
    grounded = workshop.inspected()
    assert set(grounded) == ({"champion"} if sabotaged else set())
    assert champion(workshop) | {"bundle": ""} == {"state": "duel", "tag": "model/v1", "bundle": "", "rows": duel.rows}
    assert not sabotaged or "against model/v1" in grounded["champion"]["reason"]


def test_a_champion_that_saw_the_test_rows(workshop: Workshop, sabotaged: bool) -> None:
    if sabotaged:
        split = yaml.safe_load(workshop["params.yaml"].read_text())["preprocess"]["split"]
        workshop.edit_params(preprocess__split=split | {"test_from": "2013-08", "test_until": "2013-09"})
        workshop.fly("preprocess", "train")
    crown(workshop)
    if sabotaged:
        workshop.run("git", "checkout", "--quiet", "HEAD~1")
        workshop.dvc("checkout", "--quiet", "--force")
    grounded = workshop.inspected()
    assert set(grounded) == ({"champion"} if sabotaged else set())
    assert not sabotaged or "up to which the models have seen them, found none" in grounded["champion"]["reason"]


def test_a_champion_that_cannot_be_read(workshop: Workshop, sabotaged: bool) -> None:
    crown(workshop)
    workshop.edit_json("tuning/best.json", change_a_little)
    workshop.fly("train")
    workshop.judged()
    workshop.record()
    workshop.run("git", "commit", "--quiet", "--all", "--message", "a challenger")
    if sabotaged:  # neither the remote nor the cache has the champion's model any more
        lock = yaml.safe_load(workshop.run("git", "show", "model/v1:dvc.lock").stdout)
        outs = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}
        listing = next(workshop[".dvc/cache/files/md5"].rglob(outs["bundle"][2:]))
        model = next(file["md5"] for file in json.loads(listing.read_text()) if file["relpath"] == "model.onnx")
        for copy in workshop[".dvc"].rglob(model[2:]):
            copy.unlink()
    grounded = workshop.inspected()
    assert set(grounded) == ({"champion"} if sabotaged else set())
    assert champion(workshop)["state"] == ("unreadable" if sabotaged else "duel")
    assert not sabotaged or "model/v1: expected its bundle in DVC's remote" in grounded["champion"]["reason"]
