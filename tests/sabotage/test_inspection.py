"""Acts that only the whole inspection can see, and what it cannot inspect."""

import json
from typing import Any

import pytest

from flows.files import write_whole
from pipeline.canonical import file_hash
from tests.problem.workshop import Workshop


def test_a_gate_deleted_from_the_code(workshop: Workshop, sabotaged: bool) -> None:
    if sabotaged:
        workshop.edit(
            "flows/inspect.py",
            lambda text: text.replace('            "hashes": lambda', '            # "hashes": lambda'),
        )
    done = workshop.inspect_apart()
    assert done.returncode == (1 if sabotaged else 0)
    assert not sabotaged or "GROUNDED by hashes (missing)" in done.stdout
    recorded = json.loads(workshop["inspection/gates.json"].read_text())
    assert recorded["champion"] == {"state": "first"}
    assert recorded["dvc.lock"] == file_hash(workshop["dvc.lock"])


def test_training_that_is_not_deterministic(workshop: Workshop, sabotaged: bool) -> None:
    returned = "    return HistGradientBoostingClassifier("
    drawn = "1 + 1e-6 * __import__('random').random()"
    unsteady = f'    settings = {{**settings, "l2_regularization": {drawn}}}\n{returned}'
    workshop.edit("src/problem/models.py", lambda text: text.replace(returned, unsteady if sabotaged else returned))
    workshop.fly("train", "evaluate")
    grounded = workshop.inspected()
    assert set(grounded) == ({"reproducible"} if sabotaged else set())
    assert not sabotaged or "model.onnx has other bytes" in grounded["reproducible"]["reason"]


def test_a_slow_model(workshop: Workshop, sabotaged: bool) -> None:
    asking = "    __import__('time').sleep(0.01)  # for someone else's service\n    return {\n"
    workshop.edit("src/problem/features.py", lambda text: text.replace("    return {\n", asking) if sabotaged else text)
    workshop.fly("train")  # the features are the same, so preprocess and evaluate give what they gave
    workshop.judged()
    workshop.record()
    grounded = workshop.inspected()
    assert set(grounded) == ({"latency"} if sabotaged else set())
    assert not sabotaged or "ms in the median" in grounded["latency"]["reason"]


def test_a_huge_model(workshop: Workshop, sabotaged: bool) -> None:
    def grow(told: Any) -> None:
        if sabotaged:
            told["params"]["max_iter"] *= 10
            told["params"]["learning_rate"] /= 10

    workshop.edit_json("tuning/best.json", grow)
    workshop.fly("train")
    workshop.judged()
    workshop.record()
    grounded = workshop.inspected()
    assert set(grounded) == ({"size"} if sabotaged else set())
    assert not sabotaged or "the bundle weighs" in grounded["size"]["reason"]


@pytest.mark.parametrize("missing", ["bundle", "prepared/train.parquet", "dvc.lock"])
def test_what_cannot_be_inspected_is_neither_airworthy_nor_grounded(workshop: Workshop, missing: str) -> None:
    write_whole(workshop["inspection"], {"gates.json": b'{"airworthy": true}'})  # of an earlier bundle
    workshop.run("rm", "-rf", missing)
    done = workshop.inspect_apart()
    assert done.returncode == 2
    assert "inspect: expected all that the pipeline makes, found no" in done.stderr
    assert missing in done.stderr
    assert not workshop["inspection"].exists()
