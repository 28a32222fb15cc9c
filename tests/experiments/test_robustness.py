import numpy as np
from PIL import Image

from experiments.benchmarks import robustness


def test_without_images_the_benchmark_is_skipped_in_one_line(tmp_path, capsys):
    assert robustness.main([]) == robustness.main([f"--images={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("skipped: ") and "--images=DIR" in line for line in lines)


def test_a_crop_keeps_a_share_of_either_side_at_its_place():
    image = Image.fromarray(np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (100, 1, 3)))
    left, right = (np.asarray(robustness.tamper(image, (x, 0.5))) for x in (0.0, 1.0))
    assert left.shape == right.shape == (85, 170, 3)  # 85 % of 100 and of 200
    # At the centre of the part: 85 of 200 pixels from the left edge, and 115; a ramp of 255 / 199 a pixel.
    assert abs(float(left[42, 85].mean()) - 85 * 255 / 199) < 6
    assert abs(float(right[42, 85].mean()) - 115 * 255 / 199) < 6


def test_queries_are_all_images_of_the_drawn_objects():
    labels = np.repeat(np.arange(9), 4)
    rows = robustness.draw_queries(labels, 3)
    assert len(rows) == 12
    assert len(np.unique(labels[rows])) == 3
    np.testing.assert_array_equal(rows, robustness.draw_queries(labels, 3))
