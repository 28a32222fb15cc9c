"""Named random streams: the same numbers for the same seed, other numbers for another use."""

import jax
import numpy as np

from fgis.streams import Stream, stream_generator, stream_key


def test_streams_keep_their_numbers():
    """These are part of every result that was ever published: a change here changes all of them."""
    assert {stream.name: int(stream) for stream in Stream} == {
        "PK_CLASSES": 0, "PK_MEMBERS": 1, "PUBLISHED_TRIPLETS": 2, "PUBLISHED_ORDER": 3, "STEP": 4, "LEARNED": 5,
        "UNIFORM": 6, "BALANCED": 7, "FREQUENCY": 8, "DEEP_RANKING_ORDER": 9, "DEEP_RANKING_TRIPLETS": 10,
        "SCORED_TRIPLETS": 11,
    }  # fmt: skip


def test_a_key_is_folded_with_its_stream_and_counters():
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 4), 17)
    assert jax.random.key_data(stream_key(3, Stream.STEP, 17)).tolist() == jax.random.key_data(expected).tolist()
    below = stream_key(stream_key(3, Stream.PK_CLASSES), Stream.PK_MEMBERS, 2)
    assert (
        jax.random.key_data(below).tolist()
        == jax.random.key_data(
            jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 1), 2)
        ).tolist()
    )


def test_generators_of_other_streams_give_other_numbers():
    draw = lambda *arguments: stream_generator(*arguments).random(4)
    np.testing.assert_array_equal(draw(1, Stream.PUBLISHED_TRIPLETS), np.random.default_rng([1, 2]).random(4))
    assert (draw(1, Stream.PUBLISHED_TRIPLETS) != draw(1, Stream.DEEP_RANKING_TRIPLETS)).all()
