"""Commands on several feature files: training, evaluating, transfer, searching, and what is refused."""

import json
import shutil

import h5py
import numpy as np
import pytest

from fgis.experiment.config_file import load_config
from fgis.experiment.run import Run
from fgis.experiment.transfer import open_transfer
from fgis.main import main
from tests.tiny import CONFIG, arguments, write_features


def to_others(place, names=("other_one", "other_two")):
    return f"--config.evaluation.transfer={','.join(str(place / f'{name}.h5') for name in names)}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the files one, two (in another order), and a run on both with the transfer to others.

    Each has half of the features of other tests, so that programs of the same shapes are compiled once.
    """
    place = tmp_path_factory.mktemp("several")
    for number, name in enumerate(("one", "two", "other_one", "other_two")):
        path = write_features(place / f"{name}.h5", seed=number // 2)
        with h5py.File(path, "r+") as file:
            half = file["features"][:, number % 2 * 8 :][:, :8]
            del file["features"]
            file["features"] = half
            file.attrs["backbone"] = name.removeprefix("other_")
            file.attrs["collection"] = "ukbench"
            if name == "two":
                for field in ("image_ids", "features", "labels"):
                    file[field][...] = file[field][...][::-1]
    assert main(arguments(f"{place / 'one.h5'},{place / 'two.h5'}", place / "run", to_others(place))) == 0
    return place


@pytest.fixture
def ask(trained, capsys):
    """A command on the run of ``trained``: (code, output, errors)."""

    def ask(*words, run="run", files=("one", "two")):
        capsys.readouterr()
        path = ",".join(str(trained / f"{name}.h5") for name in files)
        code = main([*arguments(path, trained / run, to_others(trained)), *words])
        return code, *capsys.readouterr()

    return ask


def test_the_report_has_heads_on_both(trained):
    report = json.loads((trained / "run" / "report.json").read_text())
    assert set(report["evaluations"]["transfer"]) >= {"frozen", "untrained", "trained"}
    trained_on = json.loads((trained / "run" / "trained_on.json").read_text())
    assert [one["backbone"] for one in trained_on["files"]] == ["one", "two"]
    assert "ukbench on one + two features" in (trained / "run" / "report.html").read_text()


def test_identity_is_the_content_of_all_files(trained, ask):
    """The same content elsewhere goes on; other content, another order or other weights do not."""
    for name in ("one", "two"):
        shutil.copy(trained / f"{name}.h5", trained / f"copy_{name}.h5")
    assert ask("--mode=evaluate", files=("copy_one", "copy_two"))[0] == 0
    code, _, errors = ask(files=("two", "one"))
    assert (code, "are not those that the run in" in errors) == (2, True)
    with h5py.File(trained / "copy_two.h5", "r+") as file:
        file["features"][0, 0] += 1
    code, _, errors = ask(files=("copy_one", "copy_two"))
    assert (code, "its 48 images, labels or features are not those" in errors) == (2, True)
    code, _, errors = ask("--config.inputs.weights=(1.,2.)", "--mode=evaluate")
    assert (code, "config.inputs.weights: [1.0, 2.0] here, but" in errors) == (2, True)


def test_files_of_other_images_are_a_transfer_in_the_same_order(ask):
    code, output, _ = ask("--mode=evaluate", files=("other_one", "other_two"))
    assert (code, "transfer: images of another feature file" in output) == (0, True)
    code, _, errors = ask("--mode=evaluate", files=("other_two", "other_one"))
    assert code == 2
    assert errors.startswith("fgis: config.features.path: file 1 was made with backbone 'two', but 'one' belongs there")


def test_transfer_files_of_another_order_are_refused(trained, ask):
    code, _, errors = ask(to_others(trained, ("other_two", "other_one")), run="new")
    assert (code, "config.evaluation.transfer=" in errors, "file 1 was made with backbone 'two'" in errors) == (2, 1, 1)


def test_bundled_images_of_one_network_are_left_out(trained, capsys):
    config = load_config("ukbench")
    config.features.update(path=f"{trained / 'one.h5'},{trained / 'two.h5'}", backbone="")
    for weights, reason in (((), "features of shape (1280,)"), ((1.0, 1.0), "2 weights for 1 feature files")):
        config.inputs.weights = weights
        assert open_transfer(Run.open(config)) is None
        line = capsys.readouterr().out
        assert line.startswith("left out: config.evaluation.transfer=bundled:ukbench_transfer: ")
        assert reason in line


def test_distances_are_weighted_means_of_those_of_the_files(trained):
    config = load_config("ukbench")

    def cosines(path, *weights):
        config.features.update(path=path, backbone="")
        config.inputs.weights = weights
        features = Run.open(config).features
        return features @ features.T

    one, two = str(trained / "one.h5"), str(trained / "two.h5")
    order = np.arange(48)[::-1]  # of the second file
    expected = 0.75 * cosines(one) + 0.25 * cosines(two)[order][:, order]
    np.testing.assert_allclose(cosines(f"{one},{two}", 3.0, 1.0), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "files", "line"),
    [
        (["--config.inputs.weights=(1.,)"], ("one", "two"), "config.inputs.weights: 1 weights for 2 feature files"),
        (["--config.inputs.weights=(1.,1.)"], ("one",), "config.inputs.weights: 2 weights for 1 feature files"),
        (["--config.inputs.weights=(1.,0.)"], ("one", "two"), "config.inputs.weights"),
        ([], ("one", "nowhere"), "nowhere.h5: no such file"),
    ],
)
def test_one_line(ask, words, files, line):
    code, _, errors = ask(*words, run="another", files=files)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert line in errors


def test_one_file_is_extracted(capsys):
    assert main([CONFIG, "--mode=extract", "--config.features.path=one.h5,two.h5"]) == 2
    line = "fgis: config.features.path: 2 files named, and one is written; extract them one by one\n"
    assert capsys.readouterr().err == line


def test_a_picture_is_described_by_one_network(ask, trained):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(trained / "query.png")
    code, _, errors = ask("--mode=search", f"--image={trained / 'query.png'}", "--config.features.backbone=vgg16")
    assert code == 2
    assert "config.features.path: 2 files of several networks, and an image is described by one" in errors
