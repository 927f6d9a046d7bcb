import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.canonical import json_bytes
from pipeline.errors import InputError
from tests.serving.made import Bundle, command, environment


def _change(bundle: Bundle, name: str, change: Callable[[bytes], bytes]) -> None:
    path = bundle.folder / name
    path.write_bytes(change(path.read_bytes()))


def _refused(bundle: Bundle, said: str, **settings: str) -> None:
    with pytest.raises(InputError, match=said):
        bundle.load(**settings)


def test_a_bundle_that_is_inspected_is_airworthy(bundle: Bundle) -> None:
    release = bundle.load()
    assert release.airworthy
    assert release.version == bundle.hash[:12]
    assert bundle.load(SERVING_MODEL_HASH=bundle.hash).hash == bundle.hash


@pytest.mark.parametrize("name", ["contract.json", "golden.json", "lineage.json", "reference.json", "model.onnx"])
def test_a_bundle_without_one_of_its_files_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.folder / name).unlink()
    bundle.inspect()
    _refused(bundle, name)


@pytest.mark.parametrize("name", ["baseline.json", "contract.json", "golden.json", "lineage.json", "reference.json"])
def test_a_file_that_is_no_json_is_refused_by_name(bundle: Bundle, name: str) -> None:
    _change(bundle, name, lambda content: content[: len(content) // 2])
    bundle.inspect()
    _refused(bundle, f"{name}: expected the JSON that training writes, got another")


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": 5, "scores": []}'])
@pytest.mark.parametrize("name", ["contract.json", "golden.json"])
def test_a_file_that_is_json_of_something_else_is_refused(bundle: Bundle, name: str, content: str) -> None:
    (bundle.folder / name).write_text(content)
    bundle.inspect()
    _refused(bundle, f"{name}: expected the JSON that training writes")


def test_a_flipped_bit_is_not_what_was_inspected(bundle: Bundle) -> None:
    _change(bundle, "model.onnx", lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    _refused(bundle, "expected an inspection of the bundle .+, found one of")


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("contract.json", {"threshold": None}, "expected threshold: the task is binary"),
        ("contract.json", {"threshold": 5}, r"\$\.threshold`"),
        ("contract.json", {"task": "multiclass"}, "expected classes: the task is multiclass"),
        ("contract.json", {"task": "nope"}, r"\$\.task`"),
        ("contract.json", {"features": []}, r"\$\.features`"),
        ("contract.json", {"inputs": [{"name": "x"}]}, r"\$\.inputs"),
        ("golden.json", {"scores": [["high"]]}, r"\$\.scores"),
        ("lineage.json", {"rows": float("nan")}, "got another"),
    ],
)
def test_a_bundle_that_says_something_else_than_training_does_is_refused(
    bundle: Bundle, name: str, changed: dict[str, Any], said: str
) -> None:
    path = bundle.folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    bundle.inspect()
    _refused(bundle, rf"{name}: .*{said}")


def test_a_verdict_that_is_none_is_refused(bundle: Bundle) -> None:
    path = bundle.folder.parent / "inspection/gates.json"
    path.write_text(json.dumps({"bundle": bundle.hash}))
    _refused(bundle, "gates.json: expected the JSON that training writes", SERVING_INSPECTED="0")


def test_a_damaged_model_is_refused(bundle: Bundle) -> None:
    _change(bundle, "model.onnx", lambda content: content[:100] + bytes([content[100] ^ 255]) + content[101:1000])
    bundle.inspect()
    _refused(bundle, "model.onnx: expected a model, cannot load it")


def test_another_bundle_than_the_one_asked_for_is_refused(bundle: Bundle) -> None:
    _refused(bundle, f"expected the bundle {'0' * 64}, got {bundle.hash}", SERVING_MODEL_HASH="0" * 64)


def test_a_bundle_of_other_features_is_refused_with_the_remedy(bundle: Bundle) -> None:
    bundle.features.write_text(bundle.features.read_text() + "\n")
    _refused(
        bundle,
        "trained with other features than this service has: .+; "
        "build an image from the bundle's commit, or train again",
    )


def test_truncated_golden_rows_are_refused(bundle: Bundle) -> None:
    golden = bundle.golden
    golden["rows"]["cycles"] = golden["rows"]["cycles"][:-1]
    (bundle.folder / "golden.json").write_bytes(json_bytes(golden))
    bundle.inspect()
    _refused(bundle, "golden.json: expected as many rows as its .+ scores")


def test_a_bundle_without_golden_rows_is_refused(bundle: Bundle) -> None:
    golden = {"rows": {name: [] for name in bundle.golden["rows"]}, "scores": []}
    (bundle.folder / "golden.json").write_bytes(json_bytes(golden))
    bundle.inspect()
    _refused(bundle, "golden.json: expected the JSON that training writes")


def test_golden_rows_that_the_contract_forbids_are_refused(bundle: Bundle) -> None:
    golden = bundle.golden
    golden["rows"]["cycles"][3] = 5000
    (bundle.folder / "golden.json").write_bytes(json_bytes(golden))
    bundle.inspect()
    _refused(bundle, "golden.json: expected rows that the contract allows; row 3, column 'cycles'")


@pytest.mark.parametrize("gap", [2e-9, float("1e-3")])
def test_golden_scores_beyond_the_tolerance_are_refused(bundle: Bundle, gap: float) -> None:
    golden = bundle.golden
    golden["scores"][7][0] += gap
    (bundle.folder / "golden.json").write_bytes(json_bytes(golden))
    bundle.inspect()
    _refused(bundle, "golden.json: expected the scores that training gave, within 1e-09; here they differ by")


def test_golden_scores_of_another_shape_are_refused(bundle: Bundle) -> None:
    golden = bundle.golden
    golden["scores"] = [[score, 1 - score] for (score,) in golden["scores"]]
    (bundle.folder / "golden.json").write_bytes(json_bytes(golden))
    bundle.inspect()
    _refused(bundle, r"golden.json: expected scores of shape \(\d+, 2\), the model gives \(\d+, 1\)")


def test_a_bundle_that_nobody_inspected_is_refused_unless_settings_say_otherwise(bundle: Bundle) -> None:
    shutil.rmtree(bundle.folder.parent / "inspection")
    _refused(bundle, "expected an inspection of the bundle .+, found none; .+SERVING_INSPECTED=0")
    release = bundle.load(SERVING_INSPECTED="0")
    assert release.verdict is None
    assert not release.airworthy


def test_a_grounded_bundle_is_refused_with_the_gates_that_ground_it(bundle: Bundle) -> None:
    gates = [{"gate": "leak", "passed": False}, {"gate": "size", "passed": True}, {"gate": "floor", "passed": False}]
    bundle.inspect(airworthy=False, gates=gates)
    _refused(bundle, "is grounded by leak, floor")
    release = bundle.load(SERVING_INSPECTED="0")
    assert release.inspected
    assert not release.airworthy


def test_an_inspection_of_another_bundle_is_none(bundle: Bundle) -> None:
    bundle.inspect(bundle="1" * 64)
    _refused(bundle, "found one of 111111111111")
    assert bundle.load(SERVING_INSPECTED="0").verdict is None


def test_what_evaluation_found_is_shown_where_nobody_inspected_but_makes_nothing_airworthy(bundle: Bundle) -> None:
    (bundle.folder.parent / "inspection").rename(bundle.folder.parent / "reports")
    release = bundle.load(SERVING_INSPECTED="0")
    assert release.verdict is not None
    assert not release.inspected
    assert not release.airworthy


def test_a_bundle_on_scikit_learn_is_refused_where_there_is_none(made: Callable[[str], Bundle]) -> None:
    with pytest.raises(InputError, match=r"scikit-learn, which is not installed here; use the image .+sklearn\.lock"):
        made("binary-sklearn").load()


def test_a_refused_bundle_ends_the_start_with_one_line(bundle: Bundle) -> None:
    bundle.inspect(airworthy=False)
    done = subprocess.run(
        command(bundle),
        env=environment(SERVING_MODEL_DIR=str(bundle.folder)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("serving: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("inspected", "code"), [("0", 0), ("1", 1)])
def test_a_check_says_whether_the_bundle_may_be_served_and_serves_nothing(
    own: Bundle, tmp_path: Path, inspected: str, code: int
) -> None:
    folder = shutil.copytree(own.folder, tmp_path / "bundle")  # away from its inspection
    done = subprocess.run(
        [sys.executable, "-m", "serving", "--check"],
        env=environment(SERVING_MODEL_DIR=str(folder), SERVING_INSPECTED=inspected),
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.endswith(" may be served\n") == (code == 0)
    assert ("expected an inspection of the bundle" in done.stderr) == (code == 1)


def test_the_service_loads_neither_pandas_nor_any_tool_of_training(bundle: Bundle) -> None:
    script = (
        "import sys, json, os; from pathlib import Path; import serving.__main__; "
        "from tests.serving.made import Service, Bundle; "
        f"Service(Bundle(Path({str(bundle.folder)!r}), Path({str(bundle.features)!r}))); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment(), capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout)
    for name in ("pandas", "sklearn", "scipy", "mlflow", "prefect", "dvc", "pandera", "opentelemetry.sdk"):
        assert name not in loaded
    assert "onnxruntime" in loaded
