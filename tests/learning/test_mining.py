import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.learning import mining

KEY = jax.random.key(0)
# Anchors 0 and 1 against five candidates; row 0 is anchor 0 itself, row 4 is padding.
DISTANCES = jnp.array([[0.0, 0.3, 0.9, 0.5, 0.1], [0.3, 0.0, 0.2, 0.2, 0.1]])
LABELS = jnp.array([7, 7, 3, 7, 7])
ROWS = jnp.array([10, 11, 12, 13, -1])


def masks():
    return mining.relations(LABELS[:2], ROWS[:2], LABELS, ROWS)


def test_relations_exclude_the_same_image_and_padding():
    positives, negatives = masks()
    assert positives.astype(int).tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 1, 0]]
    assert negatives.astype(int).tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]


def test_an_image_drawn_twice_is_no_positive_of_itself():
    positives, _ = mining.relations(jnp.array([1]), jnp.array([5]), jnp.array([1, 1, 1]), jnp.array([5, 5, 6]))
    assert positives.tolist() == [[False, False, True]]


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative():
    found = mining.batch_hard(KEY, DISTANCES, *masks())
    assert found.anchor.tolist() == [0, 1]
    assert found.positive.tolist() == [3, 0]
    assert found.negative.tolist() == [2, 2]
    assert found.weight.tolist() == [1, 1]


def test_batch_hard_breaks_ties_by_the_lowest_index():
    distances = jnp.full((1, 5), 0.5)
    positives = jnp.array([[False, True, True, False, False]])
    negatives = jnp.array([[False, False, False, True, True]])
    found = mining.batch_hard(KEY, distances, positives, negatives)
    assert (found.positive.tolist(), found.negative.tolist()) == ([1], [3])


@pytest.mark.parametrize("miner", mining.MINERS.values(), ids=mining.MINERS)
@pytest.mark.parametrize("side", ["no positives", "no negatives", "nothing"])
def test_an_anchor_that_lacks_a_side_has_weight_zero(miner, side):
    some, none = jnp.ones((3, 4), bool), jnp.zeros((3, 4), bool)
    positives = none if side != "no negatives" else some
    negatives = none if side != "no positives" else some
    found = miner(KEY, jnp.ones((3, 4)), positives, negatives)
    assert float(found.weight.sum()) == 0
    assert all(((index >= 0) & (index < 4)).all() for index in found[:3])


def test_semi_hard_lists_one_negative_per_pair_and_drops_pairs_without():
    distances = jnp.array([[0.0, 0.50, 0.10, 0.55, 0.65, 0.52, 0.05]])
    positives = jnp.array([[0, 1, 1, 0, 0, 0, 0]], bool)
    negatives = jnp.array([[0, 0, 0, 1, 1, 1, 1]], bool)
    found = mining.semi_hard(KEY, distances, positives, negatives, margin=0.2, max_positives=3)
    assert found.weight.tolist() == [
        1,
        0,
        0,
    ]  # of the pair at .10 no negative lies in (.10, .30); the third slot is empty
    assert (int(found.positive[0]), int(found.negative[0])) == (1, 5)


def test_semi_hard_excludes_a_negative_at_exactly_the_positive_distance():
    distances = jnp.array([[0.5, 0.5]])
    found = mining.semi_hard(KEY, distances, jnp.array([[True, False]]), jnp.array([[False, True]]))
    assert float(found.weight.sum()) == 0


@pytest.mark.parametrize("name", mining.MINERS)
def test_permuting_the_candidates_permutes_the_answer(name):
    rng = np.random.default_rng(0)
    labels, rows = rng.integers(0, 4, 24), np.arange(24)
    distances = rng.random((24, 24)).astype(np.float32)
    order = rng.permutation(24)

    def triplets(order):
        masks = mining.relations(*map(jnp.asarray, (labels, rows, labels[order], rows[order])))
        found = mining.MINERS[name](KEY, jnp.asarray(distances[:, order]), *masks)
        kept = np.asarray(found.weight) > 0
        return set(
            zip(*(np.asarray(x)[kept].tolist() for x in (found.anchor, order[found.positive], order[found.negative])))
        )

    assert triplets(np.arange(24)) == triplets(order) != set()


def test_mining_a_batch_of_b_never_holds_b_cubed():
    b = 64
    shapes = [jax.ShapeDtypeStruct((b, b), d) for d in (jnp.float32, bool, bool)]
    for miner in mining.MINERS.values():
        memory = jax.jit(lambda *a, miner=miner: miner(KEY, *a)).lower(*shapes).compile().memory_analysis()
        assert memory.temp_size_in_bytes < b**3 * 4 / 4
