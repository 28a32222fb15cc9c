"""The benchmark of tampered photos."""

import numpy as np
from PIL import Image

from experiments.benchmarks import robustness


def test_the_robustness_benchmark_skips_without_images_and_tampers_as_it_says(tmp_path, capsys):
    assert robustness.main([]) == robustness.main([f"--images={tmp_path}"]) == 0
    assert [line[:8] for line in capsys.readouterr().out.splitlines()] == ["skipped:"] * 2
    image = Image.new("RGB", (200, 100), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 30, 100))  # red is cut off at the right end of the room, but not at its left
    left, right = (np.asarray(robustness.tamper(image, (x, 0.5))) for x in (0.0, 1.0))
    assert left.shape == right.shape == (85, 170, 3)
    assert left[42, 10].argmax() == 0
    assert right[42, 10].argmax() == 2
    assert left[0, 0].max() < 60  # the corner that turning by 5 degrees has emptied
    rows = robustness.asked(np.repeat(np.arange(9), 4), 3)
    assert (len(rows), len(set(rows // 4))) == (12, 3)
