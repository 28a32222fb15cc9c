import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fgis.base import Neighbours
from fgis.distances import DISTANCES, pairwise_distances
from fgis.retrieval import search as module
from fgis.retrieval.measures import MEASURES
from fgis.retrieval.search import prepare_gallery, search, search_stream

RNG = np.random.default_rng(0)
GALLERY = np.abs(RNG.normal(size=(40, 6))).astype(np.float32)
QUERIES = np.abs(RNG.normal(size=(11, 6))).astype(np.float32)


@pytest.mark.parametrize("distance", DISTANCES)
def test_search_is_a_stable_sort_of_the_distances(distance):
    distances = np.asarray(pairwise_distances(QUERIES, GALLERY, distance))
    found = search(QUERIES, GALLERY, 7, distance)
    order = np.argsort(distances, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_allclose(found.distances, np.take_along_axis(distances, order, axis=1), rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_lowest_row_and_gallery_rows_are_named():
    gallery = np.array([[1.0, 0], [2, 0], [1, 0], [1, 0]], np.float32)
    found = search(np.array([[1.0, 0]], np.float32), gallery, 3, "euclidean", gallery_rows=np.array([4, 5, 8, 9]))
    assert found.rows.tolist() == [[4, 8, 9]]


def test_a_query_is_left_out_by_its_row_and_not_by_its_rank():
    gallery = np.array([[1.0, 0], [1, 0], [0, 1]], np.float32)  # rows 0 and 1 are duplicates
    found = search(gallery[1:2], gallery, 2, "euclidean", query_rows=np.array([1]))
    assert found.rows.tolist() == [[0, 2]]


def test_places_beyond_the_gallery_are_empty():
    found = search(GALLERY[:2], GALLERY[:3], 5, query_rows=np.array([0, 1]))
    assert (found.rows[:, 2:] == -1).all()
    assert np.isinf(found.distances[:, 2:]).all()
    assert sorted(found.rows[0, :2].tolist()) == [1, 2]


def hard_to_rank(distance, n=700, d=24):
    """Distances that differ in their last bits or not at all: a few centres, tiny offsets, duplicates, zero vectors."""
    rng = np.random.default_rng(7)
    x = np.abs(rng.normal(size=(6, d)))[rng.integers(0, 6, n)] + 1e-6 * rng.random((n, d))
    x[rng.integers(0, n, 60)] = x[rng.integers(0, n, 60)]
    x[rng.integers(0, n, 4)] = 0
    return x.astype(np.float32)


def one_by_one(queries, gallery, k, distance, sort=True):
    """All distances pair by pair, on the host, and a stable sort: the definition."""
    measure = MEASURES[distance]
    q, g = measure.prepare(queries), measure.prepare(gallery)
    distances = measure.finish(np.stack([measure.exact(one[None], g) for one in q]))
    if not sort:
        return None, distances
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


@pytest.mark.parametrize("distance", DISTANCES)
def test_results_are_the_same_bits_for_any_block_any_shard_and_any_stream(distance, monkeypatch):
    gallery = hard_to_rank(distance)
    queries = gallery[::9]
    rows, distances = one_by_one(queries, gallery, 5, distance)
    blocks = [(np.arange(s, min(s + 90, 700)), gallery[s : s + 90]) for s in range(0, 700, 90)]
    found = {
        "whole": search(queries, gallery, 5, distance),
        "devices": search(queries, prepare_gallery(gallery, distance, devices=jax.devices()), 5, distance),
        "stream": search_stream(queries, blocks, 5, distance),
        "one query": Neighbours(
            *(np.concatenate(x) for x in zip(*(search(q[None], gallery, 5, distance) for q in queries)))
        ),
    }
    monkeypatch.setattr(module, "SCORES", 8 * 700)
    found["blocks of 8"] = search(queries, gallery, 5, distance)
    for name, one in found.items():
        np.testing.assert_array_equal(one.rows, rows, err_msg=name)
        np.testing.assert_array_equal(one.distances, distances, err_msg=name)
        np.testing.assert_array_equal(one.tied, found["whole"].tied, err_msg=name)
    assert found["whole"].tied.any()
    assert len(jax.devices()) == 4


def test_rounded_products_alone_would_rank_wrongly():
    """The data above is hard: ranking by one product, as most code does, gives other rows."""
    gallery = hard_to_rank("euclidean")
    rows, _ = one_by_one(gallery[::9], gallery, 5, "euclidean")
    product = np.argsort(np.asarray(pairwise_distances(gallery[::9], gallery, "euclidean")), axis=1, kind="stable")
    assert (product[:, :5] != rows).mean() > 0.1


def test_a_query_is_searched_again_where_rounding_could_hide_a_nearer_entry(monkeypatch):
    """A million away from the origin, products cannot tell entries apart that are 1, 2, 3 ... away from the query."""
    depths = []
    blocks = module._search_blocks
    monkeypatch.setattr(module, "_search_blocks", lambda *a, **more: depths.append(a[3]) or blocks(*a, **more))
    gallery = np.concatenate([np.full((300, 1), 2.0**20) + np.arange(300)[:, None], [[-(2.0**24)]]]).astype(np.float32)
    found = search(gallery[:2], gallery, 3, "euclidean")
    assert found.rows.tolist() == [[0, 1, 2], [1, 0, 2]]
    assert found.distances.tolist() == [[0, 1, 2], [0, 1, 1]]
    assert found.tied.tolist() == [False, False]
    assert depths == [[9], [72], [301]]


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("distance", DISTANCES)
def test_embeddings_that_are_all_equal_tie_and_need_no_more_memory(value, distance, monkeypatch):
    shapes = []
    infinite = module._infinite
    monkeypatch.setattr(module, "_infinite", lambda *shape: shapes.append(shape) or infinite(*shape))
    x = np.full((400, 5), value, np.float32)
    found = search(x, x, 3, distance, query_rows=np.arange(400))
    expected = np.tile([0, 1, 2], (400, 1))
    expected[:3] = [[1, 2, 3], [0, 2, 3], [0, 1, 3]]
    np.testing.assert_array_equal(found.rows, expected)
    assert found.tied.all()
    assert max(shape[-1] for shape in shapes if len(shape) == 2) <= 3 + module.MARGIN + 1


@pytest.mark.parametrize("distance", ["cosine", "unit_euclidean"])
def test_zero_vectors_are_where_the_distance_says(distance):
    gallery = np.array([[1.0, 0], [0, 0], [-1, 0], [0, 1]], np.float32)
    queries = np.array([[2.0, 0], [0, 0]], np.float32)
    found = search(queries, gallery, 4, distance)
    half = 2**0.5
    expected = {"cosine": [[0, 1, 1, 2], [1, 1, 1, 1]], "unit_euclidean": [[0, 1, half, 2], [0, 1, 1, 1]]}[distance]
    np.testing.assert_allclose(found.distances, expected, atol=1e-7)
    assert found.rows.tolist() == [[0, 1, 3, 2], [0, 1, 2, 3] if distance == "cosine" else [1, 0, 2, 3]]


def test_a_tie_across_the_cut_is_told():
    gallery = np.array([[0.0], [1], [1], [3]], np.float32)
    query = np.zeros((1, 1), np.float32)
    told = [bool(search(query, gallery, k, "euclidean").tied[0]) for k in (1, 2, 3, 4, 5)]
    assert told == [False, True, False, False, False]
    assert not search(query, gallery[1:3], 2, "euclidean", query_rows=np.array([0])).tied[0]


def test_a_prepared_gallery_is_searched_again_and_again():
    prepared = prepare_gallery(GALLERY, "manhattan", np.arange(40) + 100)
    found = search(QUERIES, prepared, 3)
    np.testing.assert_array_equal(found.rows, search(QUERIES, GALLERY, 3, "manhattan").rows + 100)


def test_row_ids_may_exceed_32_bits():
    rows = np.array([2**40, 2**40 + 1, 2**62])
    found = search(GALLERY[:1], GALLERY[:3], 2, query_rows=rows[:1], gallery_rows=rows)
    assert set(found.rows[0]) == set(rows[1:])


@pytest.fixture
def without_type_checks():
    """What a user meets, for whom no shapes are checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


NAN = np.where(np.arange(6) == 1, np.nan, GALLERY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=0), "k: 0 found; write a whole number of at least 1"),
        (dict(distance="cosin"), "distance: 'cosin' found; did you mean 'cosine'?"),
        (dict(distance="l2"), "distance: 'l2' found;.* known: .*euclidean"),
        (dict(queries=QUERIES[0]), r"queries: shape \(6,\) found; write a matrix"),
        (dict(gallery=GALLERY[0]), r"gallery: shape \(6,\) found; write a matrix"),
        (dict(queries=QUERIES[:, :0]), r"queries: shape \(11, 0\) found"),
        (dict(queries=QUERIES[:, :4]), "queries: embeddings of 4 numbers found; those of the gallery have 6"),
        (dict(gallery=GALLERY[:0]), "gallery: empty"),
        (dict(gallery=NAN[3:]), "gallery: the embedding of row 0 is NaN, infinite .* and so are 36 more"),
        (dict(queries=np.where(GALLERY[3, 1] == GALLERY, np.inf, GALLERY)), "queries: the embedding of row 3 is NaN"),
        (dict(query_rows=np.arange(3)), r"query_rows: shape \(3,\) found"),
        (dict(gallery_rows=np.arange(3)), r"gallery_rows: shape \(3,\) found"),
    ],
)
def test_an_argument_that_cannot_be_searched_is_named(change, message, without_type_checks):
    with pytest.raises(ValueError, match=f"^{message}"):
        search(**{"queries": QUERIES, "gallery": GALLERY, "k": 3} | change)


def test_a_stream_without_blocks_is_an_empty_gallery():
    with pytest.raises(ValueError, match=r"^gallery: empty"):
        search_stream(QUERIES, [], 1)


@settings(derandomize=True, max_examples=20, deadline=None)
@given(
    arrays(np.int8, (9, 3), elements=st.integers(-2, 2)),
    arrays(np.int8, (23, 3), elements=st.integers(-2, 2)),
    st.sampled_from(["euclidean", "manhattan", "inner_product", "cosine"]),
    st.integers(1, 26),
    st.sampled_from([4 * 40, 1 << 25]),
    st.permutations(range(23)),
)
def test_search_is_a_full_sort_with_ties_by_row_for_any_block(queries, gallery, distance, k, scores, rows):
    """Small whole numbers: many ties, zero vectors and duplicates."""
    queries, gallery, rows = queries.astype(np.float32), gallery.astype(np.float32), np.array(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCORES", scores)
        found = search(queries, gallery, k, distance, gallery_rows=rows)
    _, distances = one_by_one(queries, gallery[np.argsort(rows)], 23, distance, sort=False)
    order = np.argsort(distances, axis=1, kind="stable")  # columns are row ids
    full = min(k, 23)
    np.testing.assert_array_equal(found.rows[:, :full], order[:, :full])
    np.testing.assert_array_equal(found.distances[:, :full], np.take_along_axis(distances, order, axis=1)[:, :full])
    assert (found.rows[:, full:] == -1).all()
    last = np.take_along_axis(distances, order, axis=1)
    np.testing.assert_array_equal(found.tied, last[:, k - 1] == last[:, k] if k < 23 else np.zeros(9, bool))


def test_no_query_has_no_neighbours():
    assert search(QUERIES[:0], GALLERY, 3).rows.shape == (0, 3)


def test_every_distance_is_searched():
    assert set(MEASURES) == set(DISTANCES)
