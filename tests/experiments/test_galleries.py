"""What the benchmark of galleries plants, and how it scores what was found."""

import random

from experiments.benchmarks import galleries
from tests.gallery.photos import photo


def test_it_is_skipped_without_photos(tmp_path):
    assert galleries.main([]) == galleries.main([f"--images={tmp_path}"]) == 0


def test_copies_are_what_they_are_called():
    sizes = {kind: copy.size for kind, (copy, _) in galleries.plant(photo(0, (200, 100)), random.Random(0)).items()}
    assert sizes == {
        "resized": (120, 60), "saved": (200, 100), "cut": (180, 90), "mirrored": (200, 100), "turned": (100, 200),
    }  # fmt: skip


def test_groups_are_scored_by_the_names_of_copies():
    def group(*names):
        return {"images": [{"image_id": f"{name}.jpg"} for name in names]}

    document = {"groups": [group("a", "a__cut"), group("b", "c", "b__cut"), group("a__saved", "d")]}
    planted = ["a__cut.jpg", "a__saved.jpg", "b__cut.jpg", "c__cut.jpg"]
    assert galleries.score_groups(document, planted) == {"found": 0.5, "right": 1 / 3}
