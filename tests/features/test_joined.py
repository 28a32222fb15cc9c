"""Feature files side by side: rows by image id, what is said of them, and files that do not go together."""

import numpy as np
import pytest

from fgis.base import FeatureSet
from fgis.errors import UserError
from fgis.features import joined
from fgis.features.store import load_features, write_features
from fgis.learning.heads import prepare


def write(path, ids, labels, points, **source):
    more = {key: source.pop(key) for key in ("coarse", "is_query") if key in source}
    write_features(path, FeatureSet(np.asarray(points), np.asarray(labels), np.array(list(ids)), source, **more))
    return str(path)


@pytest.fixture
def pair(tmp_path):
    """Three images, in another order in the second file, whose features keep their places."""
    a = write(tmp_path / "a.h5", "abc", [0, 0, 1], np.float16([[1, 2], [3, 4], [5, 6]]), backbone="one", fit="crop")
    spatial = np.arange(3, dtype=np.float32)[:, None, None, None] + np.float32([[[0], [10]]])  # means: 5, 6, 7
    b = write(tmp_path / "b.h5", "cab", [1, 0, 0], spatial, backbone="two", fit="crop")
    return a, b


def test_rows_are_matched_by_image_id(pair):
    rows = joined.open_files(",".join(pair))
    assert (rows.shape, rows.widths, rows.dtype) == ((3, 3), (2, 1), np.float32)
    assert (rows.image_ids.tolist(), rows.labels.tolist()) == (["a", "b", "c"], [0, 0, 1])
    np.testing.assert_array_equal(rows.read(np.array([2, 0])), [[5, 6, 5], [1, 2, 6]])
    other = joined.open_files(",".join(reversed(pair)))
    np.testing.assert_array_equal(other.read(np.arange(3)), [[5, 5, 6], [6, 1, 2], [7, 3, 4]])


def test_the_source_says_which_files(pair):
    source = joined.open_files(",".join(pair)).source
    assert source["fit"] == "crop"
    assert "backbone" not in source
    assert [(one["file"], one["backbone"]) for one in source["files"]] == list(zip(pair, ("one", "two"), strict=True))
    assert joined.made_by(joined.open_files(pair[0])) == []


def test_a_name_with_commas_is_one_file(pair, tmp_path):
    odd = write(tmp_path / "c,d.h5", "a", [0], np.float32([[1]]))
    assert joined.listed(odd) == (odd,)
    assert joined.open_files(odd).widths == ()
    assert joined.listed(f"{pair[0]} , {pair[1]}") == pair


def test_the_bundled_features_have_a_name():
    rows = joined.open_files("bundled:ukbench,")
    both = rows.read(np.array([0, 999]))
    np.testing.assert_array_equal(both[:, :1280], both[:, 1280:])
    np.testing.assert_array_equal(both[:, :1280], load_features().features[[0, 999]])


def test_files_that_do_not_go_together(pair, tmp_path):
    a = pair[0]
    points = np.ones((3, 1), np.float32)
    few = write(tmp_path / "few.h5", "ax", [0, 0], points[:2])
    with pytest.raises(UserError, match=r"^\S*few.h5: lacks 2 of the 3 images of \S*a.h5, the first of them 'b'; name"):
        joined.join_rows([a, few])
    more = write(tmp_path / "more.h5", "abcd", [0, 0, 1, 1], np.ones((4, 1), np.float32))
    with pytest.raises(UserError, match=r"^\S*a.h5: lacks 1 of the 4 images of \S*more.h5, the first of them 'd'"):
        joined.join_rows([a, more])
    labels = write(tmp_path / "labels.h5", "abc", [0, 1, 1], points)
    with pytest.raises(UserError, match=r"labels.h5: labels of image 'b' is 1, but 0 in \S*a.h5 \(1 such images\)"):
        joined.join_rows([a, labels])
    one, two = (
        write(tmp_path / f"q{mark}.h5", "abc", [0, 0, 1], points, is_query=np.array([mark, 1 - mark, 0], bool))
        for mark in (0, 1)
    )
    with pytest.raises(UserError, match=r"q1.h5: is_query of image 'a' is 1, but 0 in"):
        joined.join_rows([one, two])
    with pytest.raises(ValueError, match=r"^\(57,\) found beside 2 files"):
        joined.open_files(",".join(pair), (57,))


def test_other_networks_and_another_order_are_refused(pair):
    ours = joined.made_by(joined.open_files(",".join(pair)))
    joined.refuse_other_makers(ours, [dict(one, more=1) for one in ours])
    joined.refuse_other_makers(ours, [{}, {"fit": "crop"}])  # a published file says nothing
    with pytest.raises(ValueError, match=r"^file 1 was made with backbone 'two', but 'one' belongs there"):
        joined.refuse_other_makers(ours, ours[::-1])
    with pytest.raises(ValueError, match=r"^files of other networks: 1, where 2 were joined"):
        joined.refuse_other_makers(ours, [])


def test_every_part_is_prepared_by_itself():
    """The cosine of the whole is the weighted mean of the cosines: (3 · 1 + 1 · 0.6) / 4."""
    x = np.float32([[4, 0, 9, 0, 16], [1, 0, 36, 0, 0], [0, 0, 0, 0, 0]])
    whole = np.asarray(prepare(x, power=0.5, normalize=True, widths=(2, 3), weights=(3.0, 1.0)))
    np.testing.assert_allclose(whole[0], [np.sqrt(0.75), 0, 0.5 * 0.6, 0, 0.5 * 0.8], rtol=1e-6)
    np.testing.assert_allclose(whole[0] @ whole[1], 0.9, rtol=1e-6)
    np.testing.assert_array_equal(whole[2], 0)
    equal = np.asarray(prepare(x, power=0.5, normalize=True, widths=(2, 3)))
    np.testing.assert_allclose(equal[0] @ equal[1], 0.8, rtol=1e-6)
    with pytest.raises(ValueError, match="weights: 3 numbers for 2 parts"):
        prepare(x, widths=(2, 3), weights=(1.0, 1.0, 1.0))


def test_files_of_other_layers_are_refused():
    one, two = {"backbone": "one", "layer": "block_3"}, {"backbone": "one"}
    joined.refuse_other_makers([one, two], [one, {**two, "layer": ""}])
    with pytest.raises(ValueError, match="file 1 was made with layer '', but 'block_3' belongs there"):
        joined.refuse_other_makers([one, two], [two, one])
    with pytest.raises(ValueError, match="file 2 was made with layer 'block_3', but '' belongs there"):
        joined.refuse_other_makers([one, two], [one, one])
