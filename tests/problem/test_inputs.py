from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.featurize import raw_columns
from problem import source
from problem.features import features
from problem.schema import CONTRACT


class Watched(Mapping[str, np.ndarray]):
    """Columns that remember which of them were read."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns, self.read = columns, set[str]()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def test_every_column_that_a_client_must_send_is_read_by_a_feature() -> None:
    columns = Watched(raw_columns(source.read("2013-03", CONTRACT).iloc[:50], CONTRACT))
    features(columns)
    assert columns.read == {column.name for column in CONTRACT.inputs}
