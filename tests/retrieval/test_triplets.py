import numpy as np
import pytest

from fgis.errors import UserError
from fgis.retrieval.triplets import evaluate_triplets, read_triplets

IDS = np.array(["a.jpg", "b.jpg", "c/d.jpg", "e.jpg", "f.jpg"])
EMBEDDINGS = np.array([[0.0], [1.0], [-1.0], [3.0], [7.0]], np.float32)
# (query, positive, negative): right; wrong; a tie, which is wrong; right, but far from both.
TRIPLETS = np.array([[0, 1, 3], [0, 4, 3], [0, 1, 2], [4, 3, 2]])


def test_precision_and_score_by_hand():
    found = evaluate_triplets(EMBEDDINGS, TRIPLETS, "euclidean", k=2)
    assert found.correct.tolist() == [True, False, False, True]
    # The two nearest of row 0 are 1 and 2; of row 4, 3 and 1. The second triplet has neither 4 nor 3 there.
    assert found.counted.tolist() == [True, False, True, True]
    assert found.score == 2 - 1


def test_a_deep_list_counts_every_triplet_and_the_query_is_not_in_it():
    assert evaluate_triplets(EMBEDDINGS, TRIPLETS, "euclidean").score == 2 - 2
    assert evaluate_triplets(EMBEDDINGS, TRIPLETS, "euclidean", k=10**9).counted.all()
    first = evaluate_triplets(EMBEDDINGS, TRIPLETS, "euclidean", k=1)
    assert first.counted.tolist() == [True, False, True, True]  # rows 1 and 2 tie for the first place: row 1
    twin = np.concatenate([EMBEDDINGS, EMBEDDINGS[:1]])  # a duplicate of the query is nearest, the query is not
    assert not evaluate_triplets(twin, TRIPLETS, "euclidean", k=1).counted[:3].any()


@pytest.mark.parametrize("distance", ["cosine", "manhattan", "inner_product"])
def test_other_distances_agree_with_direct_arithmetic(distance):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    triplets = np.array([rng.permutation(60)[:3] for _ in range(200)])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    all_distances = {
        "cosine": 1 - unit @ unit.T, "manhattan": np.abs(x[:, None] - x).sum(-1), "inner_product": -x @ x.T,
    }[distance]  # fmt: skip
    np.fill_diagonal(all_distances, np.inf)
    nearest = np.argsort(all_distances, axis=1)[:, :8]
    q, p, n = triplets.T
    correct = all_distances[q, p] < all_distances[q, n]
    counted = np.array([b in nearest[a] or c in nearest[a] for a, b, c in triplets])
    found = evaluate_triplets(x, triplets, distance, k=8)
    np.testing.assert_array_equal(found.correct, correct)
    np.testing.assert_array_equal(found.counted, counted)
    assert found.score == np.where(correct, 1, -1)[counted].sum()


@pytest.mark.parametrize("header", ["", "query,positive,negative\n"])
def test_triplets_are_read_by_image_id(header, tmp_path):
    (tmp_path / "t.csv").write_text(f"\ufeff{header}a.jpg, b.jpg,c/d.jpg\n\nf.jpg,e.jpg,a.jpg\n")
    found = read_triplets(tmp_path / "t.csv", IDS)
    assert found.rows.tolist() == [[0, 1, 2], [4, 3, 0]]
    assert found.left_out == ()


def test_lines_that_cannot_be_scored_are_left_out_and_listed_or_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a.jpg,b.jpg,a.jpg\na.jpg,b.jpg,e.jpg\na.jpg,gone.jpg,b.jpg\n")
    found = read_triplets(tmp_path / "t.csv", IDS)
    assert found.rows.tolist() == [[0, 1, 3]]
    assert [line.partition(":")[0] for line in found.left_out] == ["1", "3"]
    assert "name three different images" in found.left_out[0]
    assert "no image 'gone.jpg'" in found.left_out[1]
    with pytest.raises(UserError, match=r"t\.csv:1: found 'a\.jpg,b\.jpg,a\.jpg'"):
        read_triplets(tmp_path / "t.csv", IDS, on_bad_line="stop")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.jpg,b.jpg\n", "t.csv:1: found 'a.jpg,b.jpg'; write 'query,positive,negative'"),
        ("a.jpg,c/e.jpg,b.jpg", "t.csv:1: no image 'c/e.jpg' among these features; did you mean"),
        ("a.jpg,b.jpg,e.jpg\na.jpg,b.jpg\n", "t.csv:2: found 'a.jpg,b.jpg'; write"),
        ("a.jpg,b.jpg,a.jpg", "t.csv:1: found 'a.jpg,b.jpg,a.jpg'; name three different images"),
        ("query,positive,negative\n", "t.csv: no triplet in it"),
        ('"a.jpg,b.jpg', "t.csv: cannot be read"),
        (None, "t.csv: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(text, line, tmp_path):
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError) as found:
        read_triplets(tmp_path / "t.csv", IDS)
    assert line in str(found.value)
    assert str(found.value).startswith(str(tmp_path / "t.csv"))
    assert "\n" not in str(found.value)
