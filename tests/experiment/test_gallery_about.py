"""What a gallery says of its features, and configurations whose features would be others."""

from pathlib import Path

import pytest

from fgis.errors import UserError
from fgis.experiment.differences import differences
from fgis.experiment.gallery_about import About, refuse_other_features

FEATURES = {"backbone": "one", "weights": "imagenet", "image_size": (4, 4), "fit": "squash", "pooling": "avg"}


def about(**features):
    return About("images", {"features": features}, "", None, "")


def test_features_of_another_layer_are_others():
    refuse_other_features(
        {"features": {**FEATURES, "layer": ""}}, about(**FEATURES), Path("gallery")
    )  # of an older one
    refuse_other_features({"features": {**FEATURES, "layer": "b"}}, about(**FEATURES, layer="b"), Path("gallery"))
    with pytest.raises(UserError, match=r"^config.features.layer: 'b' here, but gallery was made with None; leave it"):
        refuse_other_features({"features": {**FEATURES, "layer": "b"}}, about(**FEATURES), Path("gallery"))
    with pytest.raises(UserError, match=r"^config.features.pooling: 'max' here, but gallery was made with 'avg'"):
        refuse_other_features({"features": {**FEATURES, "pooling": "max"}}, about(**FEATURES), Path("gallery"))


def test_keys_that_are_newer_than_what_was_saved():
    assert differences({"a": {"b": 1, "layer": "", "pixels": []}}, {"a": {"b": 1}}) == {}
    assert differences({"a": {"b": 1, "layer": "b"}}, {"a": {"b": 1}}) == {"a.layer": ("b", None)}
