"""Acts on what is recorded, seen by the whole inspection."""

import json
from typing import Any

from tests.problem.workshop import Workshop


def test_a_gate_s_verdict_edited_by_hand(workshop: Workshop, sabotaged: bool) -> None:
    def forge(told: Any) -> None:
        told["airworthy"] = True
        next(gate for gate in told["gates"] if gate["gate"] == "floor")["passed"] = True

    if sabotaged:
        workshop.edit("params.yaml", lambda text: text.replace("floor: 0.6\n", "floor: 0.9\n"))
        assert set(workshop.judged()) == {"floor"}  # a grounded model is a result
    workshop.edit_json("reports/gates.json", forge)
    workshop.record()
    grounded = workshop.inspected()
    assert set(grounded) == ({"floor", "recorded"} if sabotaged else set())
    assert not sabotaged or 'reports/gates.json line 2: recorded \'"airworthy": true' in grounded["recorded"]["reason"]


def test_a_gate_deleted_from_the_list(workshop: Workshop, sabotaged: bool) -> None:
    def forge(told: Any) -> None:
        if sabotaged:
            told["gates"] = [gate for gate in told["gates"] if gate["gate"] != "calibration"]

    workshop.edit_json("reports/gates.json", forge)
    workshop.record()
    grounded = workshop.inspected()
    assert set(grounded) == ({"recorded"} if sabotaged else set())
    assert not sabotaged or "reports/gates.json" in grounded["recorded"]["reason"]


def test_the_threshold_moved_by_hand_in_a_report(workshop: Workshop, sabotaged: bool) -> None:
    threshold = json.loads(workshop["bundle/contract.json"].read_text())["threshold"]
    shown = next(
        text for text in (f"{threshold:.4g}", f"{threshold:.3g}") if text in workshop["reports/card.md"].read_text()
    )
    workshop.edit("reports/card.md", lambda text: text.replace(shown, "0.5" if sabotaged else shown))
    workshop.record()
    grounded = workshop.inspected()
    assert set(grounded) == ({"recorded"} if sabotaged else set())
    assert not sabotaged or "reports/card.md line" in grounded["recorded"]["reason"]


def test_a_bundle_with_one_flipped_byte(workshop: Workshop, sabotaged: bool) -> None:
    path = workshop["bundle/reference.json"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 if sabotaged else 0
    path.unlink()
    path.write_bytes(content)
    grounded = workshop.inspected()
    assert set(grounded) == ({"hashes", "recorded", "reproducible"} if sabotaged else set())
    assert not sabotaged or "bundle is not as dvc.lock records it" in grounded["hashes"]["reason"]
