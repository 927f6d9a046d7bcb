"""Raw rows as features: the first step of the scikit-learn pipeline, so that every rival serves the same model."""

from collections.abc import Mapping

import pandas as pd

from problem.features import features


def to_features(raw: pd.DataFrame, kinds: Mapping[str, str]) -> pd.DataFrame:
    """The features of raw rows, whose columns are of these kinds and come as any JSON reader left them.

    By numpy, because to convert columns one by one in pandas costs a single row more than the model does.
    """
    columns = {}
    for name, kind in kinds.items():
        values = raw[name].to_numpy()
        if kind == "time":
            if values.dtype == object:  # text, where NaN is missing
                values = raw[name].to_numpy(object, na_value=None)
            values = values.astype("datetime64[us]")
        elif kind != "category":
            values = values.astype("float64")
        columns[name] = values
    return pd.DataFrame(features(columns))
