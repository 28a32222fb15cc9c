"""Galleries in blocks give the figures of galleries in memory, and shorter lists those of deeper ones."""

import numpy as np
import pytest

from fgis.retrieval import evaluate as evaluation
from fgis.retrieval import open_set, ranks, stored
from fgis.retrieval.evaluate import evaluate, protocol
from fgis.retrieval.open_set import nearest_known_and_unknown
from fgis.retrieval.prepare import prepare_gallery
from fgis.retrieval.ranks import count_ranks
from fgis.retrieval.stored import StoredVectors, depth_groups, searchable
from fgis.retrieval.stored_ranks import count_in

LISTED = ("ns_score", "recall@1", "precision@3", "r_precision", "map@r", "ndcg@3", "knn@3", "tied")
WHOLE = ("map", "map_trapezoid", "mrr")


def uneven(largest=40, classes=12, seed=0):
    """Classes of 1 to 4 images and one of ``largest``, on a coarse grid, so that many distances are equal."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.zeros(largest, int), np.repeat(np.arange(1, classes), 1 + np.arange(1, classes) % 4)]
    labels = rng.permutation(labels)
    centres = 4 * rng.normal(size=(classes, 3))
    return np.round(centres[labels] + 1.5 * rng.normal(size=(len(labels), 3))).astype(np.float32), labels


def by_hand(x, labels, queries):
    """R-precision, MAP@R, AP, whether a list is cut at a tie, and open-set distances: by plain sorting."""
    found = {name: [] for name in ("r_precision", "map@r", "map", "tied", "known", "right", "unknown")}
    for q in queries:
        distances = np.sqrt(((x - x[q]).astype(np.float64) ** 2).sum(axis=1))
        order = [g for g in np.lexsort((np.arange(len(x)), distances)) if g != q]
        hits = labels[order] == labels[q]
        r = int(hits.sum())
        found["r_precision"].append(hits[:r].sum() / r if r else np.nan)
        precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        found["map@r"].append((precisions * hits)[:r].sum() / r if r else np.nan)
        found["map"].append((precisions * hits).sum() / r if r else np.nan)
        ascending, cut = np.sort(distances), max(r, 4) + 1  # with the query itself; ns_score reads four others
        found["tied"].append(float(ascending[cut - 1] == ascending[cut]) if cut < len(x) else 0.0)
        found["known"].append(distances[order[0]] if r else np.nan)
        found["right"].append(hits[0])
        found["unknown"].append(distances[order][~hits].min())
    return {name: np.array(values) for name, values in found.items()}


@pytest.fixture
def narrow(monkeypatch):
    """Groups, lists and blocks so small that a few images need several."""
    monkeypatch.setattr(stored, "SHALLOW", 4)
    monkeypatch.setattr(stored, "DEEPER", 2)
    monkeypatch.setattr(stored, "ENTRIES", 100)
    monkeypatch.setattr(stored, "BLOCK_NUMBERS", 30)
    monkeypatch.setattr(open_set, "FIRST", 3)


@pytest.mark.parametrize("seed", range(3))
def test_lists_as_deep_as_each_query_needs_agree_with_plain_sorting(seed, narrow):
    x, labels = uneven(seed=seed)
    found = evaluate(x, labels, protocol(labels, LISTED + WHOLE), LISTED + WHOLE, "euclidean")
    expected = by_hand(x, labels, range(len(x)))
    for name in ("r_precision", "map@r", "tied"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12, err_msg=name)
    assert 0 < expected["tied"].sum() < len(x)
    apart = x + np.random.default_rng(9).normal(size=x.shape).astype(np.float32)  # products rank no ties
    found = evaluate(apart, labels, protocol(labels, WHOLE), WHOLE, "euclidean")
    np.testing.assert_allclose(found["map"], by_hand(apart, labels, range(len(x)))["map"], atol=1e-9)


def test_no_list_is_deeper_than_its_group(monkeypatch):
    x, labels = uneven(largest=300, classes=60)
    searched, search_in = [], evaluation.search_in
    monkeypatch.setattr(evaluation, "search_in", lambda q, g, k: searched.append((len(q), k)) or search_in(q, g, k))
    evaluate(x, labels, protocol(labels, ("map@r",)), ("map@r",), "euclidean")
    assert searched == [(len(x) - 300, 4), (300, 300)]


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "manhattan", "inner_product"])
def test_groups_blocks_and_lists_change_no_bit(distance, monkeypatch):
    x, labels = uneven(seed=4)
    x[5] = 0
    parts = protocol(labels, LISTED + WHOLE, queries=np.arange(len(x)) % 3 > 0, gallery=np.arange(len(x)) % 5 > 0)
    whole = evaluate(x, labels, parts, LISTED + WHOLE, distance)
    scores = nearest_known_and_unknown(x, labels, *parts[:2], distance)
    for name, value in (("SHALLOW", 4), ("DEEPER", 2), ("ENTRIES", 100), ("BLOCK_NUMBERS", 30)):
        monkeypatch.setattr(stored, name, value)
    monkeypatch.setattr(open_set, "FIRST", 3)
    for embeddings in (x, StoredVectors(x.shape, lambda rows: x[rows])):
        found = evaluate(embeddings, labels, parts, LISTED + WHOLE, distance)
        for name in LISTED:
            np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
        for one, other in zip(nearest_known_and_unknown(embeddings, labels, *parts[:2], distance), scores, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("copied", [0, 10**9], ids=["copies", "deep lists"])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_open_set_scores_agree_with_plain_sorting(copied, where, narrow, monkeypatch):
    monkeypatch.setattr(open_set, "COPIED", copied)
    x, labels = uneven(seed=2)
    x[labels == 0] /= 100  # the largest class lies together: others are behind all of it
    embeddings = x if where == "memory" else StoredVectors(x.shape, lambda rows: x[rows])
    rows = np.arange(len(x))
    found = nearest_known_and_unknown(embeddings, labels, rows, rows, "euclidean")
    expected = by_hand(x, labels, rows)
    for values, name in zip(found, ("known", "right", "unknown"), strict=True):
        np.testing.assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "chi2", "inner_product"])
def test_ranks_in_blocks_are_those_of_a_sort(distance, narrow):
    rng = np.random.default_rng(3)
    x = np.abs(rng.normal(size=(90, 4))).astype(np.float32)
    x[[20, 41, 77]] = x[60]  # equal vectors in several blocks: ties go to the lowest place
    x[33] = 0
    members = np.array([np.r_[rng.permutation(90)[:6], -1] for _ in range(90)])
    members[0, :4] = 20, 41, 60, 77
    members[members == np.arange(90)[:, None]] = -1
    excluded = np.where(np.arange(90) % 2, np.arange(90), -1)
    gallery = searchable(StoredVectors(x.shape, lambda rows: x[rows]), np.arange(90), distance)
    found = count_in(x, gallery, members, excluded)
    np.testing.assert_array_equal(found, count_ranks(x, prepare_gallery(x, distance), members, excluded=excluded))
    assert np.diff(found[0, :4]).tolist() == [1, 1, 1]


def test_many_members_are_counted_by_sorting(monkeypatch):
    x = np.round(np.random.default_rng(5).normal(size=(300, 2)), 1).astype(np.float32)  # many ties
    members = np.tile(np.arange(300), (300, 1))
    members[:, 7] = -1
    sorted_once = count_ranks(x, x, members, "euclidean", np.full(300, 7))
    gallery = searchable(StoredVectors(x.shape, lambda rows: x[rows]), np.arange(300), "euclidean")
    np.testing.assert_array_equal(sorted_once, count_in(x, gallery, members, np.full(300, 7)))
    monkeypatch.setattr(ranks, "SORTED", 300)
    np.testing.assert_array_equal(sorted_once, count_ranks(x, x, members, "euclidean", np.full(300, 7)))
    apart = x + np.arange(300)[:, None]  # no ties
    one = count_ranks(apart, apart, members, "euclidean")
    monkeypatch.setattr(ranks, "SORTED", 1)
    np.testing.assert_array_equal(one, count_ranks(apart, apart, members, "euclidean"))


def test_every_query_is_in_one_group():
    depths = np.random.default_rng(0).integers(0, 5000, 1000)
    depths[:4] = 64, 256, 65, 4096  # bounds of groups
    groups = list(depth_groups(depths, 16))
    assert sorted(np.concatenate([places for places, _ in groups]).tolist()) == list(range(1000))
    for places, depth in groups:
        assert depths[places].max() <= depth
        assert len(places) * depth <= stored.ENTRIES
    assert list(depth_groups(np.zeros(0, int), 16)) == []
    ((places, depth),) = depth_groups(np.array([0, 3]), 16)
    assert (places.tolist(), depth) == ([0, 1], 3)


def test_stored_vectors_are_read_in_blocks(monkeypatch):
    monkeypatch.setattr(stored, "BLOCK_NUMBERS", 8)
    x, asked = np.arange(20, dtype=np.float32).reshape(10, 2), []
    vectors = StoredVectors(x.shape, lambda rows: asked.append(len(rows)) or x[rows])
    np.testing.assert_array_equal(np.asarray(vectors), x)
    assert asked == [4, 4, 2]
    np.testing.assert_array_equal(vectors[2:5], x[2:5])
    assert len(vectors) == 10
