import numpy as np

from fgis.retrieval.measures import MEASURES


def test_a_zero_vector_is_at_a_cosine_distance_of_1_and_others_where_they_are():
    """Half a square of ½ is that of a zero vector, and of unit vectors at 60 degrees as well: only the first is 1."""
    unit, zero, sixty = np.array([1.0, 0]), np.zeros(2), np.array([0.5, 0.75**0.5])
    vectors = np.array([unit, zero, sixty], np.float32)
    keys = MEASURES["cosine"].exact(vectors[:, None], vectors[None])
    np.testing.assert_allclose(keys, [[0, 1, 0.5], [1, 1, 1], [0.5, 1, 0]], atol=1e-6)
    assert MEASURES["cosine"].exact(vectors[:1], vectors[1:2]) == 1  # a single pair


def test_room_to_write_in_changes_nothing():
    a, c = (np.random.default_rng(n).random((2, 3, 8), np.float32) for n in range(2))
    for name, measure in MEASURES.items():
        a_, c_ = (measure.prepare(x.reshape(-1, 8)).reshape(x.shape) for x in (a, c))
        kept = a_.copy(), c_.copy()
        room = np.full_like(a_, np.nan)
        np.testing.assert_array_equal(measure.exact(a_, c_, room), measure.exact(a_, c_), err_msg=name)
        np.testing.assert_array_equal((a_, c_), kept)
