import numpy as np
import pytest

from fgis.errors import UserError
from fgis.retrieval import ground_truth
from fgis.retrieval.ground_truth import (
    evaluate_lists,
    holidays,
    mean_precision,
    read_landmarks,
    revisited,
    shift_junk,
)

GROUND_TRUTH = {
    "imlist": ["a", "b", "c", "d"],
    "qimlist": ["q", "r"],
    "gnd": [
        {"bbx": [0.0, 1, 2, 3], "easy": np.array([2]), "hard": [0, 3], "junk": np.array([1])},
        {"bbx": [0.0, 1, 2, 3], "easy": [], "hard": [1], "junk": []},
    ],
}


@pytest.mark.parametrize(
    ("difficulty", "relevant", "junk"),
    [
        ("easy", [[2], []], [[1, 0, 3], [1]]),
        ("medium", [[2, 0, 3], [1]], [[1], []]),
        ("hard", [[0, 3], [1]], [[1, 2], []]),
    ],
)
def test_revisited_difficulties(difficulty, relevant, junk):
    lists = revisited(GROUND_TRUTH, difficulty)
    assert lists == (["q", "r"], ["a", "b", "c", "d"], relevant, junk)
    with pytest.raises(ValueError, match=r"^difficulty: 'x' found; known: easy, hard, medium"):
        revisited(GROUND_TRUTH, "x")


def test_landmarks_are_read_from_their_text_files(tmp_path):
    for name, text in {
        "hall_1_query.txt": "oxc1_hall_000 1 2 3 4", "hall_1_good.txt": "a\nb\n", "hall_1_ok.txt": "d",
        "hall_1_junk.txt": "c\n", "arch_2_query.txt": "arch_7 0 0 9 9", "arch_2_good.txt": "c", "arch_2_ok.txt": "",
        "arch_2_junk.txt": "",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    lists = read_landmarks(tmp_path, ["x/a.jpg", "x/b.jpg", "x/c.jpg", "x/d.jpg"])
    assert (lists.query_ids, lists.relevant, lists.junk) == (["arch_7", "hall_000"], [[2], [0, 1, 3]], [[], [2]])
    with pytest.raises(UserError, match=r"arch_2_good\.txt: image 'c' is not in the gallery"):
        read_landmarks(tmp_path, ["a.jpg", "b.jpg", "d.jpg"])
    with pytest.raises(UserError, match=r"no \*_query.txt"):
        read_landmarks(tmp_path / "hall_1_good.txt", [])
    (tmp_path / "hall_1_junk.txt").unlink()  # no empty list: without its junk images another score would come out
    with pytest.raises(UserError, match=r"hall_1_junk\.txt: cannot be read \(No such file"):
        read_landmarks(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    (tmp_path / "arch_2_query.txt").write_text(" ")
    with pytest.raises(UserError, match=r"arch_2_query\.txt: names no query"):
        read_landmarks(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])


def test_holidays_are_grouped_by_their_numbers():
    lists = holidays(["jpg/100001.jpg", "jpg/100000.jpg", "jpg/100002.jpg", "jpg/100101.jpg", "jpg/100100.jpg"])
    assert lists.query_ids == ["jpg/100000.jpg", "jpg/100100.jpg"]
    assert (lists.relevant, lists.junk) == ([[0, 2], [3]], [[1], [4]])
    with pytest.raises(UserError, match="no six-digit number"):
        holidays(["cat.jpg"])


def test_without_junk_what_is_behind_it_moves_up():
    ranks, junk = np.array([[0, 4, -1], [3, 1, 2]]), np.array([[2, 3, -1], [0, -1, -1]])
    assert shift_junk(ranks, junk).tolist() == [[0, 2, -1], [2, 0, 1]]


def test_precision_stops_at_the_last_relevant_image():
    ranks, totals = np.array([[0, 2, 5], [1, 99, 99], [99, 99, 99]]), np.array([3, 1, 0])
    np.testing.assert_allclose(mean_precision(ranks, totals, 1), [1, 0, np.nan])
    np.testing.assert_allclose(mean_precision(ranks, totals, 5), [2 / 5, 1 / 2, np.nan])  # query 1: of two, not of five
    np.testing.assert_allclose(mean_precision(ranks, totals, 10), [3 / 6, 1 / 2, np.nan])


def by_the_published_program(row, relevant, junk):
    """The published evaluation, step by step: sort, take the junk out, add trapezoids."""
    order = [g for g in np.argsort(row, kind="stable") if g not in junk]
    ranks = [i for i, g in enumerate(order) if g in relevant]
    total, old_recall, old_precision, hits = 0.0, 0.0, 1.0, 0
    for i, g in enumerate(order):
        hits += g in relevant
        recall, precision = hits / len(relevant), hits / (i + 1)
        total += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return total, ranks


@pytest.mark.parametrize("seed", range(3))
def test_lists_are_scored_as_by_the_published_program(seed):
    rng = np.random.default_rng(seed)
    queries, gallery = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(50, 4)).astype(np.float32)
    picked = [rng.permutation(50)[:12] for _ in queries]
    relevant, junk = (
        [p[: 1 + i].tolist() for i, p in enumerate(picked)],
        [p[8 : 8 + i].tolist() for i, p in enumerate(picked)],
    )
    found = evaluate_lists(queries, gallery, relevant, junk, "euclidean")
    distances = np.linalg.norm(queries[:, None] - gallery, axis=-1)
    for q, row in enumerate(distances):
        trapezoid, ranks = by_the_published_program(row, relevant[q], junk[q])
        assert found["map_trapezoid"][q] == pytest.approx(trapezoid)
        assert found["map"][q] == pytest.approx(np.mean([(i + 1) / (r + 1) for i, r in enumerate(ranks)]))
        assert found["mp@10"][q] == pytest.approx(sum(r < 10 for r in ranks) / min(10, ranks[-1] + 1))


def test_an_image_in_both_lists_is_junk_and_no_relevant_image_is_no_value():
    gallery = np.array([[1.0], [2], [3]], np.float32)
    found = evaluate_lists(np.zeros((2, 1), np.float32), gallery, [[0, 2], []], [[0], [1]], "euclidean")
    assert found["map"][0] == pytest.approx(1 / 2)
    assert all(np.isnan(values[1]) for values in found.values())
    assert set(found) == {"map_trapezoid", "map", *(f"mp@{k}" for k in ground_truth.PRECISION_DEPTHS)}
