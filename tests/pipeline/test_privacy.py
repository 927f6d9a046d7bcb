import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.lineage import lineage
from pipeline.preprocess import preprocess
from pipeline.train import train
from tests.synthetic import BEST, BY_TIME, CANDIDATES, features, make_contract, make_table, train_params

CONTRACT = make_contract()
OWNER, SERIAL = "owned-by-", 86_419_753_208_641  # nothing else looks like them


def table_that_tells() -> pd.DataFrame:
    """Readings whose columns without the role of a feature hold what nobody else must see."""
    table = make_table()
    number = np.arange(len(table))
    machine = table["machine"].map(lambda name: OWNER + name)
    return table.assign(machine=machine, serial=SERIAL + number, repair_cost=SERIAL + number + 0.5)


def unpacked(files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Files, and those inside an archive among them."""
    for name, content in files.items():
        yield name, content
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                yield from ((f"{name}/{inside}", archive.read(inside)) for inside in archive.namelist())


def told(files: Mapping[str, bytes], table: pd.DataFrame) -> list[str]:
    """The files that hold an owner, or a serial number or what a repair cost, as text or as they lie in memory."""
    text = [OWNER.encode(), str(SERIAL)[:10].encode()]
    numbers = [value.tobytes() for name in ("serial", "repair_cost") for value in table[name].to_numpy()]
    numbers += [value.tobytes() for value in table["serial"].to_numpy(dtype="float64")]
    return [name for name, content in unpacked(files) if any(secret in content for secret in text + numbers)]


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_no_identifier_and_nothing_but_inputs_reaches_the_bundle(candidate: str) -> None:
    table = table_that_tells()
    rows = preprocess(
        table,
        contract=CONTRACT,
        features=features,
        params=BY_TIME,
        locations=[(Path("made.parquet"), 600)],
        quarantined={},
    )
    splits = {"train": rows.train, "validation": rows.validation}
    assert rows.train["machine"].str.startswith(OWNER).all()  # a split by group needs them until here
    made_from = lineage(splits, contract=CONTRACT, files=[], params=train_params().model_dump(), source=Path("src"))
    bundle = train(
        rows.train,
        rows.validation,
        contract=CONTRACT,
        features=features,
        candidates=CANDIDATES,
        best=BEST[candidate],
        params=train_params(),
        features_hash="made",
        lineage=made_from,
    )
    assert told(bundle, table) == []


def test_an_identifier_is_found_wherever_it_lies() -> None:
    table = table_that_tells()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", table["repair_cost"].to_numpy()[7:9].tobytes())
    files = {
        "golden.json": json.dumps({"machine": table["machine"].tolist()}).encode(),
        "reference.json": json.dumps({"edges": table["serial"].tolist()}).encode(),
        "model.onnx": b"ir" + table["serial"].to_numpy(dtype="float64").tobytes(),
        "pipeline.skops": packed.getvalue(),
        "baseline.json": b"{}",
    }
    assert told(files, table) == ["golden.json", "reference.json", "model.onnx", "pipeline.skops/weights"]
