import pandas as pd
import pytest

from pipeline.canonical import parquet_bytes
from pipeline.compare import differences, golden_gap, same_table

RECORDED = {"metrics.json": b'{\n "roc_auc": 0.673784,\n "passed": true\n}\n', "card.md": b"# Card\n"}


def changed(name: str, old: bytes, new: bytes) -> dict[str, bytes]:
    return RECORDED | {name: RECORDED[name].replace(old, new)}


def test_same_files_do_not_differ() -> None:
    assert differences(RECORDED, dict(RECORDED)) == []


def test_rounding_on_another_platform_is_no_difference() -> None:
    assert differences(changed("metrics.json", b"0.673784", b"0.673785"), RECORDED) == []


def test_by_its_bytes_a_rounded_figure_is_a_difference() -> None:
    [found] = differences(changed("metrics.json", b"0.673784", b"0.673785"), RECORDED, "bytes")
    assert "metrics.json line 2" in found


def test_what_is_no_text_only_has_other_bytes() -> None:
    assert differences({"model.onnx": b"\0a"}, {"model.onnx": b"\0b"}) == ["model.onnx has other bytes"]


def test_by_its_words_another_figure_is_none_but_another_word_is() -> None:
    assert differences(changed("metrics.json", b"0.673784", b"0.9"), RECORDED, "words") == []
    assert len(differences(changed("metrics.json", b"true", b"false"), RECORDED, "words")) == 1


def test_tables_are_the_same_up_to_rounding() -> None:
    table = pd.DataFrame({"x": [1.0, 2.0], "name": ["a", None]})
    made = parquet_bytes(table)
    assert same_table(made, made)
    assert same_table(made, parquet_bytes(table.assign(x=[1.0, 2.0 * (1 + 1e-12)])))
    assert not same_table(made, parquet_bytes(table.assign(x=[1.0, 2.1])))
    assert not same_table(made, parquet_bytes(table.assign(name=["a", "b"])))


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        (changed("metrics.json", b"0.673784", b"0.69"), 'metrics.json line 2: recorded \'"roc_auc": 0.69'),
        (changed("metrics.json", b"true", b"false"), "made again '\"passed\": true'"),
        (changed("card.md", b"# Card\n", b"# Card\nadded\n"), "card.md line 2: recorded 'added', made again ''"),
        ({"metrics.json": RECORDED["metrics.json"]}, "card.md is made, but not recorded"),
        (RECORDED | {"more.md": b""}, "more.md is recorded, but not made"),
    ],
)
def test_anything_else_is_named_with_what_stood_and_what_stands(recorded: dict[str, bytes], said: str) -> None:
    [found] = differences(recorded, RECORDED)
    assert said in found


def test_a_number_that_became_text_differs() -> None:
    assert len(differences(changed("metrics.json", b"0.673784", b'"none"'), RECORDED)) == 1


def test_the_gap_is_the_largest_of_any_golden_score() -> None:
    one = {"rows": [{"a": None}], "scores": [[0.5], [0.25]]}
    assert golden_gap(one, one) == 0
    assert golden_gap(one, one | {"scores": [[0.5], [0.2]]}) == pytest.approx(0.05)


def test_the_gap_of_large_predictions_is_relative() -> None:
    assert golden_gap({"rows": [1], "scores": [[2000.002]]}, {"rows": [1], "scores": [[2000.0]]}) == pytest.approx(1e-6)


def test_golden_rows_that_are_not_the_same_are_infinitely_far() -> None:
    one = {"rows": [{"a": None}], "scores": [[0.5]]}
    assert golden_gap(one, {"rows": [{"a": 1}], "scores": [[0.5]]}) == float("inf")
    assert golden_gap(one, {"rows": [{"a": None}], "scores": [[0.5, 0.5]]}) == float("inf")
