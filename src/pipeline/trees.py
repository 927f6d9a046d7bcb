"""Histogram gradient boosting as one ONNX node in double precision. Change here to: follow a scikit-learn release.

skl2onnx writes these trees in single precision, drops the link of a Poisson or gamma loss, and gets native
categories wrong (sklearn-onnx #1051, #1101), so they are written here from scikit-learn's private tables.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

BOOSTING = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)

LESS_OR_EQUAL, MEMBER = 0, 6  # modes of a node, in the numbering of ai.onnx.ml 5


def split_columns(boosting: Any) -> npt.NDArray[np.intp]:
    """The column of X for each feature number in the trees: scikit-learn puts categorical columns first."""
    if boosting._preprocessor is None:
        return np.arange(boosting.n_features_in_)
    return np.argsort(~boosting.is_categorical_, kind="stable")


def tree_ensemble(boosting: Any) -> dict[str, Any]:
    """The attributes of one `TreeEnsemble` from X [n, d] to the raw prediction [n, k], baseline included.

    The baseline is the first tree, so that the sum runs in scikit-learn's order, to the last bit.
    """
    table = _Table(split_columns(boosting), _categories(boosting))
    for k, start in enumerate(np.ravel(boosting._baseline_prediction)):
        table.add_constant(float(start), k)
    for iteration in boosting._predictors:
        for k, tree in enumerate(iteration):
            table.add_tree(tree, k)
    return table.attributes() | {"n_targets": boosting.n_trees_per_iteration_}


def _categories(boosting: Any) -> list[npt.NDArray[np.float64]]:
    """The values that each categorical feature had in training, by feature number; NaN is none of them."""
    if boosting._preprocessor is None:
        return []
    encoder = boosting._preprocessor.named_transformers_["encoder"]
    return [values[~np.isnan(values)] for values in encoder.categories_]


class _Table:
    """The attributes of the node, filled tree by tree; interior nodes and leaves are numbered apart."""

    def __init__(self, columns: npt.NDArray[np.intp], categories: list[npt.NDArray[np.float64]]) -> None:
        self._columns, self._categories = columns, categories
        self._lists: defaultdict[str, list[Any]] = defaultdict(list)

    def add_constant(self, value: float, k: int) -> None:
        """A tree of one leaf: a node whose two branches are that leaf."""
        nodes, leaves = len(self._lists["nodes_modes"]), len(self._lists["leaf_weights"])
        row = {"modes": LESS_OR_EQUAL, "featureids": 0, "splits": 0.0, "missing_value_tracks_true": 0}
        row |= {"truenodeids": leaves, "falsenodeids": leaves, "trueleafs": 1, "falseleafs": 1}
        self._extend(tree_roots=[nodes], leaf_targetids=[k], leaf_weights=[value])
        self._extend(**{f"nodes_{name}": [entry] for name, entry in row.items()})

    def add_tree(self, tree: Any, k: int) -> None:
        table, is_leaf = tree.nodes, tree.nodes["is_leaf"].astype(bool)
        if is_leaf[0]:
            return self.add_constant(float(table["value"][0]), k)
        nodes, leaves = len(self._lists["nodes_modes"]), len(self._lists["leaf_weights"])
        place = np.where(is_leaf, leaves + np.cumsum(is_leaf) - 1, nodes + np.cumsum(~is_leaf) - 1)
        inner, ends = table[~is_leaf], table[is_leaf]
        by_category, missing_left = (inner["is_categorical"].astype(bool), inner["missing_go_to_left"].astype(bool))
        # A category that is not in the set goes where a missing value goes: the set is of the other side.
        swapped = by_category & missing_left
        yes = np.where(swapped, inner["right"], inner["left"])
        no = np.where(swapped, inner["left"], inner["right"])
        self._extend(
            tree_roots=[nodes],
            nodes_modes=np.where(by_category, MEMBER, LESS_OR_EQUAL),
            nodes_featureids=self._columns[inner["feature_idx"]],
            nodes_splits=np.where(by_category, 0.0, inner["num_threshold"]),
            nodes_missing_value_tracks_true=(missing_left & ~by_category).astype(int),
            nodes_truenodeids=place[yes],
            nodes_falsenodeids=place[no],
            nodes_trueleafs=is_leaf[yes].astype(int),
            nodes_falseleafs=is_leaf[no].astype(int),
            leaf_targetids=np.full(len(ends), k),
            leaf_weights=ends["value"],
        )
        for split, other_side in zip(inner[by_category], swapped[by_category], strict=True):
            bits = tree.raw_left_cat_bitsets[split["bitset_idx"]].astype("<u4").view(np.uint8)
            values = self._categories[split["feature_idx"]]
            is_left = np.unpackbits(bits, bitorder="little")[: len(values)].astype(bool)
            self._extend(membership_values=[*values[is_left ^ other_side], np.nan])

    def attributes(self) -> dict[str, Any]:
        kinds = {"nodes_modes": np.uint8, "nodes_splits": float, "leaf_weights": float, "membership_values": float}
        return {
            name: numpy_helper.from_array(np.array(entries, kinds[name]), name) if name in kinds else entries
            for name, entries in self._lists.items()
        }

    def _extend(self, **columns: Any) -> None:
        for name, entries in columns.items():
            self._lists[name].extend(np.asarray(entries).tolist())
