"""Each method against its definition, written densely and slowly; and what all of them must hold to."""

import numpy as np
import pytest

from fgis.base import Neighbours
from fgis.retrieval import rerank
from fgis.retrieval.graph import DEEPEST, GalleryGraph
from fgis.retrieval.rerank import RERANKERS, FirstSearch, first_search
from fgis.retrieval.search import prepare_queries, search
from fgis.retrieval.selection import choose_on_other_folds

RNG = np.random.default_rng(0)


def objects(count=9, images=5, d=7, noise=0.5, seed=0):
    """Directions around a few centres, some of them at obtuse angles, in no order."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, d)).repeat(images, axis=0) + noise * rng.normal(size=(count * images, d))
    return rng.permutation(x).astype(np.float32)


GALLERY = objects()
ROWS = 100 + 3 * np.arange(len(GALLERY))
STRANGERS = objects(seed=1)[:8]  # no members of the gallery
QUERIES = np.concatenate([GALLERY[[4, 0, 17, 33]], STRANGERS])


def rerank_first(name, queries=QUERIES, gallery=GALLERY, depth=6, rows=ROWS, **params):
    return RERANKERS[name](first_search(queries, gallery, depth, "cosine", rows), **params)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def ranked(distances, k=6):
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return ROWS[order], np.take_along_axis(distances, order, axis=1)


def check(found, distances):
    rows, expected = ranked(distances)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, expected, atol=2e-6)


def with_itself(query, gallery, k):
    """(vectors, cosines) of the query's k nearest among the gallery and itself, itself once and first."""
    others = [x for x in gallery if not np.allclose(x, query)]
    nearest = sorted(others, key=lambda x: -(x @ query))[: k - 1]
    return [query, *nearest], [1.0] + [x @ query for x in nearest]


@pytest.mark.parametrize(("n", "alpha"), [(1, 3.0), (4, 1.0), (5, 2.5), (40, 2.0)])
def test_query_expansion_is_its_formula(n, alpha):
    q, x = unit(QUERIES), unit(GALLERY)
    cosines = q @ x.T
    nearest = np.argsort(-cosines, axis=1)[:, :n]
    expanded = [
        one + sum(cosines[i, j] ** alpha * x[j] for j in nearest[i] if cosines[i, j] > 0) for i, one in enumerate(q)
    ]
    check(rerank_first("weighted_query_expansion", n=n, alpha=alpha), 1 - unit(expanded) @ x.T)


def test_average_query_expansion_by_hand():
    """(1, 0) and its nearest, (.8, .6), add up to the direction (3, 1) / √10; (-1, 0) and (0, -1) count nothing."""
    gallery = np.array([[-1, 0], [0.8, 0.6], [0, -2], [0, 1]], np.float32)
    found = rerank_first(
        "average_query_expansion", np.array([[5.0, 0]], np.float32), gallery, 4, np.array([7, 5, 9, 3]), n=4
    )
    assert found.rows.tolist() == [[5, 3, 9, 7]]
    expected = [1 - 3 / 10**0.5, 1 - 1 / 10**0.5, 1 + 1 / 10**0.5, 1 + 3 / 10**0.5]
    np.testing.assert_allclose(found.distances[0], [1 - (3 * 0.8 + 0.6) / 10**0.5, *expected[1:]], atol=1e-6)


@pytest.mark.parametrize(("k", "alpha"), [(1, 3.0), (3, 0.5), (4, 3.0), (9, 2.0)])
def test_database_augmentation_is_its_formula(k, alpha):
    q, x = unit(QUERIES), unit(GALLERY)

    def augmented(v):
        vectors, cosines = with_itself(v, x, k)
        return sum(c**alpha * y for y, c in zip(vectors, cosines) if c > 0)

    check(
        rerank_first("database_augmentation", k=k, alpha=alpha),
        1 - unit([augmented(v) for v in q]) @ unit([augmented(v) for v in x]).T,
    )


@pytest.mark.parametrize("k", [1, 4, 10, 60])
def test_local_scaling_is_its_formula(k):
    q, x = unit(QUERIES), unit(GALLERY)
    around = lambda v: np.mean(with_itself(v, x, k + 1)[1][1:])
    distances = np.array([[around(a) + around(c) - 2 * a @ c for c in x] for a in q])
    check(rerank_first("local_scaling", k=k), distances)


def test_local_scaling_ranks_a_hub_lower():
    """The hub is nearest to all three; the query's own neighbour, to the query alone."""
    angle = lambda *degrees: np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    gallery, query = angle(11, 13, 15, -11.5).astype(np.float32), angle(0).astype(np.float32)
    rows = np.arange(4)
    assert search(query, gallery, 2, gallery_rows=rows).rows.tolist() == [[0, 3]]
    found = rerank_first("local_scaling", query, gallery, 2, rows, k=2)
    assert found.rows.tolist() == [[3, 0]]
    cos = lambda degrees: np.cos(np.radians(degrees))
    around_query, around_3 = (cos(11) + cos(11.5)) / 2, (cos(22.5) + cos(24.5)) / 2
    np.testing.assert_allclose(found.distances[0, 0], around_query + around_3 - 2 * cos(11.5), atol=1e-6)


def test_augmented_local_scaling_is_one_after_the_other():
    q, x = unit(QUERIES), unit(GALLERY)

    def augmented(v):
        vectors, cosines = with_itself(v, x, 3)
        return unit(sum(c**2 * y for y, c in zip(vectors, cosines)))

    q, x = np.stack([augmented(v) for v in q]), np.stack([augmented(v) for v in x])
    around = lambda v: np.mean(with_itself(v, x, 4)[1][1:])
    distances = np.array([[around(a) + around(c) - 2 * a @ c for c in x] for a in q])
    check(rerank_first("augmented_local_scaling", k=3, alpha=2.0, scale_k=3), distances)


def zhong(q, x, k1, k2, weight):
    """The method of the paper with sets and dictionaries, each query alone beside the gallery."""
    distance = lambda a, c: 1 - a @ c
    everyone = [*x, *q]
    near = lambda v, k: sorted(range(len(x)), key=lambda j: distance(v, x[j]))[:k]
    is_member = lambda v: np.isclose(distance(v, x[near(v, 1)[0]]), 0, atol=1e-12)
    own_and = lambda v, k: near(v, k + 1 if is_member(v) else k)
    radius = lambda j, k: distance(x[j], x[near(x[j], k + 1)[-1]]) + 1e-12
    mutual = lambda v, k: {
        j for j in own_and(v, k) if distance(v, x[j]) < 1 and distance(v, x[j]) <= radius(j, k)
    }  # fmt: skip

    def code(v):
        members = mutual(v, k1)
        whole = set(members)
        for j in members:
            half = mutual(x[j], round(k1 / 2))
            if len(half & members) > 2 / 3 * len(half):
                whole |= half
        weights = {j: np.exp(-distance(v, x[j])) for j in whole}
        return {j: w / sum(weights.values()) for j, w in weights.items()}

    codes = [code(v) for v in everyone]

    def smooth(i):
        v = everyone[i]
        others = [codes[j] for j in near(v, k2 if is_member(v) else k2 - 1) if distance(v, x[j]) < 1]
        parts = others if is_member(v) else [codes[i], *others]
        return {j: sum(part.get(j, 0) for part in parts) / len(parts) for j in set().union(*parts)}

    smoothed = [smooth(i) for i in range(len(everyone))]

    def jaccard(a, c):
        either = set(a) | set(c)
        most = sum(max(a.get(j, 0), c.get(j, 0)) for j in either)
        return 1 - sum(min(a.get(j, 0), c.get(j, 0)) for j in either) / most if most else 1

    return np.array([
        [(1 - weight) * jaccard(smoothed[len(x) + i], smoothed[j]) + weight * distance(a, c) for j, c in enumerate(x)]
        for i, a in enumerate(q)
    ])  # fmt: skip


@pytest.mark.parametrize(("k1", "k2", "weight"), [(6, 3, 0.3), (4, 1, 0.2), (9, 4, 0.1), (20, 6, 0.7), (6, 40, 0.3)])
def test_k_reciprocal_is_its_formula(k1, k2, weight):
    distances = zhong(unit(QUERIES), unit(GALLERY), k1, k2, weight)
    assert len(np.unique(distances.round(6))) > 0.9 * distances.size or weight < 0.3
    check(rerank_first("k_reciprocal", k1=k1, k2=k2, weight=weight), distances)


def test_k_reciprocal_orders_its_candidates_alone():
    distances = zhong(unit(QUERIES), unit(GALLERY), 6, 3, 0.3)
    eight = search(QUERIES, GALLERY, 8, gallery_rows=ROWS).rows
    for i in range(len(QUERIES)):
        distances[i, ~np.isin(ROWS, eight[i])] = np.inf
    check(rerank_first("k_reciprocal", candidates=8), distances)


@pytest.mark.parametrize(("k", "alpha", "gamma"), [(3, 0.99, 3.0), (5, 0.9, 1.0), (8, 0.5, 2.0), (60, 0.7, 3.0)])
def test_diffusion_is_its_equation(k, alpha, gamma):
    q, x = unit(QUERIES), unit(GALLERY)
    cosines = x @ x.T - 2 * np.eye(len(x))
    listed = np.argsort(-cosines, axis=1)[:, : min(k, len(x) - 1)]
    lists = np.zeros(cosines.shape, bool)
    np.put_along_axis(lists, listed, True, axis=1)
    affinity = np.where(lists & lists.T, np.maximum(cosines, 0) ** gamma, 0)
    root = np.sqrt(np.maximum(affinity.sum(axis=1), 1e-30))
    near = q @ x.T
    nearest = np.argsort(np.argsort(-near, axis=1), axis=1) < k
    sources = np.where(nearest, np.maximum(near, 0) ** gamma, 0)
    flow = np.linalg.solve(np.eye(len(x)) - alpha * affinity / np.outer(root, root), sources.T).T
    found = rerank_first("diffusion", k=k, alpha=alpha, gamma=gamma)
    rows, expected = ranked(np.where(flow > 1e-12, -flow, 1 - near))
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, expected, rtol=2e-5)


def test_diffusion_follows_a_chain_of_neighbours_and_the_rest_follows_by_cosine():
    """A quarter circle in steps of 10°: from 0° it reaches 90°, before the lone image at -32° that is much nearer."""
    degrees = np.radians([90, -32, 10, 70, 30, 50, 60, 20, 80, 40, -100])
    gallery = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    rows, query = np.arange(11), np.array([[1.0, 0]], np.float32)
    assert search(query, gallery, 11, gallery_rows=rows).rows[0].tolist() == [2, 7, 4, 1, 9, 5, 6, 3, 8, 0, 10]
    found = rerank_first("diffusion", query, gallery, 11, rows, k=2, alpha=0.9)
    assert found.rows[0].tolist() == [7, 2, 4, 9, 5, 6, 3, 8, 0, 1, 10]  # 10° has one edge, 20° has two
    assert (found.distances[0, :9] < 0).all()
    np.testing.assert_allclose(found.distances[0, 9:], 1 - np.cos(np.radians([32, 100])), rtol=1e-5)


ALL = pytest.mark.parametrize("name", RERANKERS)


@ALL
def test_the_result_is_as_deep_as_the_first_search_and_otherwise_does_not_depend_on_it(name):
    deep, shallow = rerank_first(name, depth=20), rerank_first(name, depth=2)
    assert shallow.rows.shape == (12, 2)
    np.testing.assert_array_equal(shallow.rows, deep.rows[:, :2])
    np.testing.assert_allclose(shallow.distances, deep.distances[:, :2], rtol=1e-5, atol=1e-6)
    assert (np.diff(deep.distances) >= 0).all()
    assert np.isin(deep.rows, ROWS).all()
    assert all(len(set(line)) == 20 for line in deep.rows.tolist())


@ALL
def test_the_order_changes(name):
    assert (rerank_first(name).rows != search(QUERIES, GALLERY, 6, gallery_rows=ROWS).rows).any()


@ALL
def test_the_neighbours_of_a_query_do_not_depend_on_other_queries(name):
    whole = rerank_first(name)
    for i in (0, 7):
        alone = rerank_first(name, QUERIES[i : i + 1])
        np.testing.assert_array_equal(alone.rows[0], whole.rows[i])
        np.testing.assert_allclose(alone.distances[0], whole.distances[i], rtol=1e-5, atol=1e-6)


@ALL
def test_the_order_of_the_gallery_does_not_matter(name):
    order = RNG.permutation(len(GALLERY))
    shuffled = rerank_first(name, gallery=GALLERY[order], rows=ROWS[order])
    np.testing.assert_array_equal(shuffled.rows, rerank_first(name).rows)


@ALL
def test_length_does_not_matter_and_unit_euclidean_ranks_alike(name):
    expected = rerank_first(name).rows
    np.testing.assert_array_equal(rerank_first(name, 4 * QUERIES, GALLERY * np.float32(0.5)).rows, expected)
    again = RERANKERS[name](first_search(QUERIES, GALLERY, 6, "unit_euclidean", ROWS))
    np.testing.assert_array_equal(again.rows, expected)


@ALL
def test_members_are_recognised_without_their_row(name):
    """A member as a query gives the same neighbours under any other row ids."""
    found = rerank_first(name, GALLERY[[8]])
    np.testing.assert_array_equal(rerank_first(name, GALLERY[[8]], rows=ROWS + 7).rows, found.rows + 7)


@ALL
@pytest.mark.parametrize("k", [1, 7])
def test_degenerate_galleries_have_defined_results(name, k):
    one, query = GALLERY[:1], np.stack([GALLERY[0], STRANGERS[0], np.zeros(7)]).astype(np.float32)
    galleries = {
        "one image": one,
        "one zero": 0 * one,
        "duplicates": np.repeat(one, 30, axis=0),
        "zeros among others": np.concatenate([0 * GALLERY[:4], GALLERY[:3], 0 * GALLERY[:4]]),
        "opposites": np.concatenate([one, -one, -one]),
        "fewer than k": GALLERY[:3],
    }
    for case, gallery in galleries.items():
        rows = np.arange(len(gallery)) + 5
        with np.errstate(divide="raise", invalid="raise"):
            found, full = rerank_first(name, query, gallery, k, rows), min(k, len(gallery))
        assert np.isfinite(found.distances[:, :full]).all(), case
        assert (np.sort(found.rows[:, :full], axis=1) >= 5).all(), case
        assert all(len(set(line)) == full for line in found.rows[:, :full].tolist()), case
        assert (found.rows[:, full:] == -1).all(), case
        assert np.isposinf(found.distances[:, full:]).all(), case
        assert (np.diff(found.distances[:, :full]) >= 0).all(), case
    tied = rerank_first(name, query[:1], galleries["duplicates"], k, np.arange(30))
    assert tied.rows[0].tolist() == list(range(k))
    assert tied.tied[0] or name == "diffusion"  # whose graph is made of lists that are cut among equals
    for i in (0, 1):
        whole = rerank_first(name, query[[i]], galleries["zeros among others"], 11, np.arange(11))
        assert set(whole.rows[0, :3]) & {4, 5, 6}, "an image comes before the empty ones"


@ALL
def test_duplicates_tie_and_the_lowest_row_comes_first(name):
    gallery = np.concatenate([GALLERY, GALLERY[[8]], GALLERY[[8]]])
    rows = RNG.permutation(len(gallery))
    found = rerank_first(name, GALLERY[[8]], gallery, 3, rows)
    assert found.rows[0].tolist() == sorted(rows[[8, -2, -1]].tolist())
    assert found.distances[0].tolist() == [found.distances[0, 0]] * 3
    assert not found.tied[0]
    assert rerank_first(name, GALLERY[[8]], gallery, 2, rows).tied.tolist() == [True]


def test_jaccard_alone_leaves_empty_places_empty():
    with np.errstate(invalid="raise"):
        found = rerank_first("k_reciprocal", depth=50, weight=0.0)
    assert (found.rows[:, 45:] == -1).all()
    assert np.isposinf(found.distances[:, 45:]).all()
    assert np.isfinite(found.distances[:, :45]).all()


@ALL
def test_empty_places_of_the_first_search_are_ignored(name):
    first = first_search(QUERIES, GALLERY, 50, "cosine", ROWS)  # 45 there are
    assert (first.neighbours.rows[:, 45:] == -1).all()
    again = RERANKERS[name](first)
    np.testing.assert_array_equal(again.rows[:, :6], rerank_first(name).rows)
    np.testing.assert_array_equal(np.sort(again.rows[:, :45], axis=1), np.tile(ROWS, (12, 1)))
    assert (again.rows[:, 45:] == -1).all()


@ALL
def test_no_query_has_no_rerank_first(name):
    assert rerank_first(name, QUERIES[:0]).rows.shape == (0, 6)


@ALL
@pytest.mark.parametrize("distance", ["euclidean", "manhattan", "inner_product"])
def test_a_distance_that_does_not_rank_by_the_cosine_is_refused(name, distance):
    first = first_search(QUERIES, GALLERY, 6, distance, ROWS)
    with pytest.raises(ValueError, match=f"distance: '{distance}' found; re-ranking compares directions"):
        RERANKERS[name](first)


@ALL
def test_neighbours_of_another_gallery_are_refused(name):
    with pytest.raises(ValueError, match="another gallery"):
        RERANKERS[name](FirstSearch(QUERIES, GALLERY, ROWS, "cosine", search(QUERIES, GALLERY, 100)))


@pytest.mark.parametrize(
    ("name", "params", "line"),
    [
        ("average_query_expansion", dict(n=0), "n: 0 found"),
        ("weighted_query_expansion", dict(n=-1), "n: -1 found"),
        ("database_augmentation", dict(k=0), "k: 0 found"),
        ("local_scaling", dict(k=0), "k: 0 found"),
        ("augmented_local_scaling", dict(scale_k=0), "scale_k: 0 found"),
        ("k_reciprocal", dict(k2=0), "k2: 0 found"),
        ("k_reciprocal", dict(weight=1.5), "weight: 1.5 found"),
        ("diffusion", dict(k=0), "k: 0 found"),
        ("diffusion", dict(alpha=1.0), "alpha: 1.0 found; write a number from 0 to below 1"),
        ("diffusion", dict(gamma=float("nan")), "gamma: nan found"),
        ("weighted_query_expansion", dict(alpha=float("inf")), "alpha: inf found"),
    ],
)
def test_a_wrong_parameter_is_one_line(name, params, line):
    with pytest.raises(ValueError, match=f"^{line}"):
        rerank_first(name, **params)


def test_numbers_of_neighbours_beyond_the_gallery_mean_the_whole_gallery():
    """No memory grows with them: a billion neighbours would not fit."""
    many = 10**9
    for name, params in {
        "average_query_expansion": dict(n=many),
        "database_augmentation": dict(k=many),
        "local_scaling": dict(k=many),
        "augmented_local_scaling": dict(k=many, scale_k=many),
        "k_reciprocal": dict(k1=many, k2=many, candidates=many),
        "diffusion": dict(k=many),
    }.items():
        whole = rerank_first(name, **{key: 92 for key in params})  # k1 / 2 is beyond 45, too
        beyond = rerank_first(name, **params)
        np.testing.assert_array_equal(beyond.rows, whole.rows, err_msg=name)
        np.testing.assert_allclose(beyond.distances, whole.distances, atol=1e-6, err_msg=name)


def test_parameters_are_chosen_on_other_folds_by_hand():
    """Fold 0 takes what is best on folds 1 and 2 (a: 3.5 of 4, b: 3), though b is better on fold 0 itself."""
    folds = np.array([0, 0, 1, 1, 2, 2])
    values = {
        ("a", 1): np.array([0, 0, 1, 1, 1, 0.5]),
        ("b", 2): np.array([1, 1, 1, 0, 1, 1.0]),
        ("c", 3): np.array([0, 0, 0, 0, 0, 0.0]),
    }
    found, chosen = choose_on_other_folds(values, folds)
    assert chosen == {0: ("a", 1), 1: ("b", 2), 2: ("b", 2)}
    assert found.tolist() == [0, 0, 1, 0, 1, 1]


def test_queries_without_a_value_count_nowhere_and_ties_go_to_the_first():
    nan = np.nan
    folds = np.array([5, 5, 7, 7])
    values = {"a": np.array([nan, nan, 1, nan]), "b": np.array([nan, nan, 0.75, 1.0]), "c": np.array([1, nan, 1, nan])}
    found, chosen = choose_on_other_folds(values, folds)
    assert chosen == {5: "a", 7: "c"}  # fold 5 sees 1, .875 and 1; fold 7 sees a value of c alone
    np.testing.assert_array_equal(found, [nan, nan, 1, nan])
    assert choose_on_other_folds(values, np.zeros(4, int))[1] == {0: "a"}  # no other fold
    below = {"none": np.array([nan, nan, nan]), "some": np.array([-2.0, -1.0, -3.0])}
    assert choose_on_other_folds(below, np.arange(3))[1] == {0: "some", 1: "some", 2: "some"}


def test_every_method_is_in_the_table():
    assert all(function.__name__ == name for name, function in RERANKERS.items())
    assert isinstance(rerank_first("diffusion"), Neighbours)
    assert {name for name in vars(rerank) if name in RERANKERS} == set(RERANKERS)


def copies(count=60):
    """A gallery with more copies of one image than a graph is deep, and a zero vector."""
    gallery = objects(count=count // 5, seed=3)
    gallery[10 : 12 + DEEPEST] = gallery[4]
    gallery[-1] = 0
    return gallery


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("gallery", [GALLERY, copies()], ids=["objects", "copies"])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_kept_of_a_gallery_changes_no_bit(name, gallery, known):
    """Whether its neighbours are known beforehand or not, and however often it is searched."""
    vectors = prepare_queries(gallery, "cosine")
    graph = GalleryGraph(lambda: search(vectors, vectors, DEEPEST) if known else None)
    for query in (gallery[[4, 17]], gallery[[0]], STRANGERS[:3], gallery[[4, 17]]):
        first = first_search(query, gallery, 6, "cosine", np.arange(len(gallery)))
        expected, found = RERANKERS[name](first), RERANKERS[name](first._replace(graph=graph))
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.distances, expected.distances)
