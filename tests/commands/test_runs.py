import json
import re
import shutil

import h5py
import numpy as np
import pytest

from fgis.experiment import training
from fgis.features.store import load_features
from fgis.learning import checkpoint, heads
from fgis.main import main
from fgis.retrieval.folds import photo_folds
from fgis.retrieval.operating_point import choose_operating_point
from tests.tiny import CONFIG, arguments, write_features


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features") / "tiny.h5")


@pytest.fixture(scope="module")
def run(features, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "work"
    assert main(arguments(features, workdir)) == 0
    return workdir


def figures(workdir):
    return json.loads((workdir / "report.json").read_text())["evaluations"]


def test_a_run_leaves_what_the_contract_says(run):
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "report.json",
        "report.html",
        "operating_point.json",
        "trained_on.json",
    }
    report = json.loads((run / "report.json").read_text())
    assert (report["version"], report["step"]) == (1, 12)
    open_set = report["evaluations"].pop("open_set")
    assert set(open_set["trained"]) == {"auroc", "fpr@95tpr", "dir@1far", "far@1", "dir@10far", "far@10"}
    assert set(open_set["frozen"]) == set(open_set["trained"])
    assert set(report["evaluations"]) == {"closed_set", "unseen_objects", "unseen_gallery"}
    for name, evaluation in report["evaluations"].items():
        assert (evaluation["queries"], evaluation["gallery"]) == (48, 16 if name == "unseen_gallery" else 48)
        for row in ("trained", "frozen", "difference", "untrained", "difference_untrained"):
            for metric in ("ns_score", "accuracy_top4", "recall@1", "map@r", "knn@3"):
                low, high = evaluation[row][metric]["ci95"]
                assert low <= evaluation[row][metric]["mean"] <= high
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6, 8, 10, 12]
    assert all(len(record["loss"]) == 2 + 2 * 3 for record in records)
    assert records[-1]["loss"][0] < records[0]["loss"][0]


def test_the_page_needs_no_other_file_and_shows_the_table(run):
    page = (run / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert f"{figures(run)['unseen_objects']['trained']['ns_score']['mean']:.4f}" in page
    assert "Worst queries" in page
    assert "<svg" in page


def test_the_same_command_again_says_that_it_is_finished(run, features, capsys):
    before = (run / "report.json").read_bytes()
    assert main(arguments(features, run)) == 0
    assert "finished" in capsys.readouterr().out
    assert (run / "report.json").read_bytes() == before


def test_the_same_experiment_elsewhere_gives_the_same_bits(run, features, tmp_path):
    assert main(arguments(features, tmp_path / "again")) == 0
    assert (tmp_path / "again" / "report.json").read_bytes() == (run / "report.json").read_bytes()
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    one, two = (checkpoint.restore_params(place)[1] for place in (run, tmp_path / "again"))
    for name in ("down", "up"):
        np.testing.assert_array_equal(one["params"][name]["kernel"], two["params"][name]["kernel"])


@pytest.mark.slow
def test_streamed_features_train_like_resident_ones(run, features, tmp_path):
    assert main(arguments(features, tmp_path / "streamed", "--config.train.resident_megabytes=0")) == 0
    one, two = (checkpoint.restore_params(place)[1] for place in (run, tmp_path / "streamed"))
    np.testing.assert_allclose(one["params"]["up"]["kernel"], two["params"]["up"]["kernel"], atol=1e-6)


def test_evaluate_restores_the_checkpoint_and_gives_the_same_figures(run, features):
    before = (run / "report.json").read_bytes()
    (run / "report.json").unlink()
    assert main(arguments(features, run, "--mode=evaluate")) == 0
    assert (run / "report.json").read_bytes() == before


def test_the_operating_point_is_chosen_on_the_features(run, features):
    point = json.loads((run / "operating_point.json").read_text())
    x = np.asarray(heads.prepare(load_features(str(features)).features, power=0.5, normalize=True), np.float64)
    labels, distances = np.repeat(np.arange(12), 4), 1 - x @ x.T
    known = np.where(np.eye(48, dtype=bool), np.inf, distances).min(axis=1)
    unknown = np.where(labels[:, None] == labels, np.inf, distances).min(axis=1)
    expected = choose_operating_point(known[None], unknown[None], labels)
    assert (point["version"], point["distance"]) == (2, "cosine")
    for name, value in expected._asdict().items():
        assert point[name] == pytest.approx(value, abs=1e-5)
    words = f"{100 * expected.false_alarms:.0f} % of photos of other objects"
    assert words in json.loads((run / "report.json").read_text())["search_rates"]
    assert words in (run / "report.html").read_text()


def own_report(workdir):
    """What belongs to the run itself and no other evaluation may touch."""
    names = ("report.json", "report.html", "operating_point.json", "config.json", "trained_on.json")
    return {name: (workdir / name).read_bytes() for name in names}


def test_how_a_run_is_evaluated_may_differ_from_how_it_was_trained(run, features):
    before = own_report(run)
    more = ("--config.rerank.name=database_augmentation", "--config.evaluation.metrics=('map@r','map')")
    assert main(arguments(features, run, "--mode=evaluate", *more)) == 0
    (folder,) = (run / "evaluations").glob("*rerank.name=database_augmentation*")
    for name in ("closed_set", "unseen_objects", "unseen_gallery"):
        found = figures(folder)[name]
        assert set(found["trained"]) == {"map@r", "map"}
        for row in ("frozen_reranked", "reranked", "difference_reranked"):
            assert set(found[row]) == {"map@r"}  # "map" reads the whole ranking
        gained = found["reranked"]["map@r"]["mean"] - found["trained"]["map@r"]["mean"]
        assert found["difference_reranked"]["map@r"]["mean"] == pytest.approx(gained)
        assert gained != 0
    assert json.loads((folder / "config.json").read_text())["rerank"]["name"] == "database_augmentation"
    assert own_report(run) == before


def test_an_earlier_step_is_evaluated_beside_the_last_one(run, features, capsys):
    steps = sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    before = own_report(run)
    assert main(arguments(features, run, "--mode=evaluate", f"--step={steps[-1]}")) == 0
    assert own_report(run) == before
    assert main(arguments(features, run, "--mode=evaluate", "--step=3")) == 2
    assert f"--step=3: {run}/checkpoints: no checkpoint of step 3; take one of" in capsys.readouterr().err


def test_a_work_directory_alone_is_enough_to_evaluate(run):
    before = own_report(run)
    (run / "report.json").unlink()
    assert main([f"--workdir={run}", "--mode=evaluate"]) == 0
    assert own_report(run) == before


def test_triplets_and_neighbours_on_demand(run, features, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(
        "000.jpg,001.jpg,020.jpg\n004.jpg,005.jpg,000.jpg\n000.jpg,001.jpg,002.jpg\n8.jpg,8.jpg,9.jpg\n"
    )
    before = own_report(run)
    more = ("--mode=evaluate", f"--triplets={tmp_path / 't.csv'}", "--neighbours")
    assert main(arguments(features, run, *more, "--strict")) == 2
    assert f"--triplets={tmp_path / 't.csv'}:4: no image '8.jpg'" in capsys.readouterr().err
    assert main(arguments(features, run, *more)) == 0
    assert f"left out: {tmp_path / 't.csv'}:4: no image '8.jpg'" in capsys.readouterr().out
    folder = run / "evaluations" / "triplets=t"
    found = figures(folder)["triplets"]
    assert (found["queries"], len(found["left_out"])) == (3, 1)
    x = np.asarray(heads.prepare(load_features(str(features)).features, power=0.5, normalize=True))
    right, score = [], 0
    for q, p, n in ((0, 1, 20), (4, 5, 0), (0, 1, 2)):
        right.append(x[q] @ x[p] > x[q] @ x[n])
        nearest = [row for row in np.argsort(-(x @ x[q]), kind="stable") if row != q][:30]
        if p in nearest or n in nearest:
            score += 1 if right[-1] else -1
    assert found["frozen"]["similarity_precision"]["mean"] == pytest.approx(np.mean(right))
    assert found["frozen"]["score@30"]["mean"] == pytest.approx(score)
    assert set(found) >= {"frozen", "untrained", "trained"}
    with h5py.File(folder / "neighbours.h5") as file:
        rows, distances = file["rows"][...], file["distances"][...]
        assert (rows.shape, len(file["image_ids"])) == ((48, 47), 48)
        assert (rows != np.arange(48)[:, None]).all()
        assert (np.diff(distances, axis=1) >= 0).all()
    assert own_report(run) == before


def test_evaluate_on_another_file_is_a_transfer(run, features, tmp_path, capsys):
    other = write_features(tmp_path / "other.h5", objects=2, seed=5)  # fewer objects than the run has folds
    before = own_report(run)
    assert main(arguments(other, run, "--mode=evaluate")) == 0
    found = figures(run / "evaluations" / "features=other")
    assert set(found) == {"transfer", "transfer_open_set"}
    assert found["transfer"]["queries"] == found["transfer_open_set"]["queries"] == 8
    assert set(found["transfer"]) >= {"frozen", "trained", "difference"}
    assert own_report(run) == before
    assert main(arguments(other, run, "--mode=evaluate", "--neighbours")) == 2
    assert "--neighbours: only on the images that the run was trained on" in capsys.readouterr().err
    listed = tmp_path / "listed.csv"
    listed.write_text("000.jpg,001.jpg,004.jpg\n005.jpg,000.jpg,006.jpg\n000.jpg,001.jpg,047.jpg\n")
    assert main(arguments(other, run, "--mode=evaluate", f"--triplets={listed}")) == 0
    assert f"left out: {listed}:3: no image '047.jpg'" in capsys.readouterr().out
    found = figures(run / "evaluations" / "features=other,triplets=listed")
    assert set(found) == {"transfer", "transfer_open_set", "triplets"}
    x = np.asarray(heads.prepare(load_features(str(other)).features, power=0.5, normalize=True))
    right = [x[0] @ x[1] > x[0] @ x[4], x[5] @ x[0] > x[5] @ x[6]]
    assert found["triplets"]["frozen"]["similarity_precision"]["mean"] == np.mean(right)
    assert {"trained", "left_out"} <= set(found["triplets"])


def test_a_run_reports_on_new_photos_and_on_a_second_file_as_well(features, tmp_path, capsys):
    other = write_features(tmp_path / "other.h5", objects=5, seed=5)
    more = ("--config.photo_folds=2", f"--config.evaluation.transfer={other}", "--config.rerank.name=local_scaling")
    workdir = tmp_path / "run"
    assert main(arguments(features, workdir, *more, "--config.folds=2", "--config.seeds=1")) == 0
    found, shown = figures(workdir), capsys.readouterr().out
    rows = {
        "frozen", "untrained", "trained", "difference", "difference_untrained", "frozen_reranked", "reranked",
        "difference_reranked",
    }  # fmt: skip
    assert (found["new_photos"]["queries"], found["new_photos"]["gallery"]) == (48, 24)
    assert (found["transfer"]["queries"], found["transfer"]["gallery"]) == (20, 20)
    assert set(found["new_photos"]) & rows == set(found["transfer"]) & rows == rows
    assert set(found["transfer_open_set"]) >= {"frozen", "untrained", "trained"}
    # Frozen features, by hand: images of a fold are searched among those of the other one.
    x = np.asarray(heads.prepare(load_features(str(features)).features, power=0.5, normalize=True))
    labels = np.repeat(np.arange(12), 4)
    folds = photo_folds(labels, 2)
    similar = np.where(folds[:, None] == folds, -np.inf, x @ x.T)
    right = labels[similar.argmax(axis=1)] == labels
    assert found["new_photos"]["frozen"]["recall@1"]["mean"] == pytest.approx(right.mean())
    y = np.asarray(heads.prepare(load_features(str(other)).features, power=0.5, normalize=True))
    nearest = np.where(np.eye(20, dtype=bool), -np.inf, y @ y.T).argmax(axis=1) // 4
    assert found["transfer"]["frozen"]["recall@1"]["mean"] == pytest.approx((nearest == np.arange(20) // 4).mean())
    assert "Against the frozen features, the trained head" in shown
    assert main(arguments(other, workdir, "--mode=evaluate", *more, "--config.folds=2", "--config.seeds=1")) == 0
    (folder,) = (workdir / "evaluations").iterdir()
    for row in ("frozen", "trained", "reranked"):  # the heads that were trained on everything, as in the run's own
        assert figures(folder)["transfer"][row] == found["transfer"][row]


def test_a_second_file_is_of_other_images_and_fits(features, tmp_path, capsys):
    same = write_features(tmp_path / "same.h5", objects=12)
    with h5py.File(same, "r+") as file:
        kept = file["features"][20:].astype(np.float16)  # rounded, in another order and under other names
        for name, values in (("features", kept), ("labels", np.arange(28) // 4), ("image_ids", np.arange(28))):
            del file[name]
            file[name] = values if name != "image_ids" else [f"new{value}.jpg" for value in values]
    for path, words in ((same, "image 'new0.jpg' is '020.jpg', which the run is trained on (28 such images)"),
                        (tmp_path / "none.h5", "no such file")):  # fmt: skip
        assert main(arguments(features, tmp_path / "run", f"--config.evaluation.transfer={path}")) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"fgis: config.evaluation.transfer={path}: ")
        assert words in error
        assert error.count("\n") == 1
        assert not (tmp_path / "run" / "checkpoints").exists()


CHANGES = {
    "a label": lambda data: data | {"labels": np.where(np.arange(48) == 5, 0, data["labels"])},
    "a value": lambda data: data | {"features": data["features"] + (np.arange(48) == 7)[:, None].astype(np.float32)},
    "the order": lambda data: {name: values[::-1] for name, values in data.items()},
    "fewer images": lambda data: {name: values[:44] for name, values in data.items()},
    "more images": lambda data: {
        "image_ids": [*data["image_ids"], b"new.jpg"],
        "labels": np.append(data["labels"], 0),
        "features": np.concatenate([data["features"], data["features"][:1]]),
    },
    "a name": lambda data: data | {"image_ids": [b"new.jpg", *data["image_ids"][1:]]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_feature_file_is_never_called_unseen(change, run, features, tmp_path, capsys):
    """Neither when it is evaluated nor when the run is resumed: heads may have been trained on what is now held out."""
    path = shutil.copy(features, tmp_path / "changed.h5")
    with h5py.File(path, "r+") as file:
        data = CHANGES[change]({name: file[name][...] for name in ("image_ids", "features", "labels")})
        for name, values in data.items():
            del file[name]
            file[name] = values
    workdir = shutil.copytree(run, tmp_path / "run")
    assert main(arguments(path, workdir, "--mode=evaluate")) == 0
    assert set(figures(workdir / "evaluations" / "features=changed")) == {"transfer", "transfer_open_set"}
    assert main(arguments(path, workdir)) == 2
    error = capsys.readouterr().err
    assert "are not those that the run in" in error
    assert error.count("\n") == 1


def test_the_same_images_under_another_path_are_the_same_images(run, features, tmp_path, capsys):
    before = own_report(run)
    assert main(arguments(shutil.copy(features, tmp_path / "copy.h5"), run, "--mode=evaluate")) == 0
    after = json.loads((run / "report.json").read_text())
    assert after["evaluations"] == json.loads(before["report.json"])["evaluations"]
    assert main(arguments(tmp_path / "copy.h5", run)) == 0
    assert "is finished" in capsys.readouterr().out
    for name, content in before.items():
        (run / name).write_bytes(content)


def test_a_transfer_to_features_of_another_size_is_one_line(run, features, tmp_path, capsys):
    other = write_features(tmp_path / "other.h5")
    with h5py.File(other, "a") as file:
        narrow = file["features"][:, :9]
        del file["features"]
        file["features"] = narrow
    assert main(arguments(other, run, "--mode=evaluate")) == 2
    assert "features of size 9, but the heads in" in capsys.readouterr().err


def test_another_experiment_does_not_overwrite_a_run(run, features, capsys):
    assert main(arguments(features, run, "--config.loss.soft_margin.temperature=0.2")) == 2
    assert "config.loss.soft_margin.temperature: 0.2 here" in capsys.readouterr().err


@pytest.mark.slow
def test_weight_decay_does_not_move_the_centre_of_a_head(features, tmp_path):
    more = ("--config.optimizer.name=adamw", "--config.optimizer.adamw.weight_decay=0.5")
    assert main(arguments(features, tmp_path, *more)) == 0
    center = checkpoint.restore_params(tmp_path)[1]["constants"]["center"][0]  # of a closed-set run
    prepared = np.asarray(heads.prepare(load_features(str(features)).features, power=0.5, normalize=True))
    np.testing.assert_allclose(center, prepared.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        ("--config.miner.name=semi_hard", "--config.loss.name=triplet", "--config.reduction.name=mean_active"),
        ("--config.miner.name=batch_all",),
        ("--config.miner.name=all_semi_hard", "--config.distance=manhattan"),
        ("--config.head.name=mlp", "--config.head.mlp.widths=(8,6)", "--config.head.mlp.dropouts=(0.5,)"),
        ("--config.optimizer.name=sgd", "--config.folds=0", "--config.distance=chi2"),
        ("--config.optimizer.name=adamw", "--config.closed_set=False", "--config.distance=euclidean"),
    ],
    ids=lambda more: more[0].removeprefix("--config."),
)
@pytest.mark.slow
def test_an_ablation_is_a_flag(more, features, tmp_path):
    short = ("--config.train.total_steps=2", "--config.seeds=1", *more)
    assert main(arguments(features, tmp_path, *short)) == 0
    found = [evaluation for name, evaluation in figures(tmp_path).items() if name != "open_set"]
    assert all(np.isfinite(evaluation["trained"]["map@r"]["mean"]) for evaluation in found)


@pytest.mark.slow
def test_the_published_variant_runs_and_validates(features, tmp_path):
    more = ("--config.sampler.published.triplets=40", "--config.head.mlp.widths=(8,8,6)")
    assert main([f"{CONFIG}:published", *arguments(features, tmp_path, *more)[1:]]) == 0
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert len(record["validation_loss"]) == 8


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--config.miner.name=semihard"], "config.miner.name: 'semihard' is no miner; did you mean 'semi_hard'?"),
        (["--config.folds=13"], "config.folds: 13 folds of 12 objects"),
        (["--config.features.images=nowhere"], "config.features.images: no directory nowhere"),
        (["--config.memory.size=5"], "config.memory.size: 5 is less than a batch of 24"),
        (["--config.head.mlp.widths=()", "--config.head.name=mlp"], "config.head.mlp.widths"),
        (["--mode=evaluate"], "no checkpoints here"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(more, line, features, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "train", lambda *a, **k: pytest.fail("something was trained"))
    assert main(arguments(features, tmp_path / "none", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("fgis: ")
    assert error.count("\n") == 1
    assert line in error
    assert not (tmp_path / "none" / "checkpoints").exists()


@pytest.mark.parametrize("damage", ["labels", "nan", "truncated", "missing", "text"])
def test_a_damaged_feature_file_is_one_line_that_names_it(damage, features, tmp_path, capsys):
    path = tmp_path / "damaged.h5"
    path.write_bytes(features.read_bytes())
    if damage == "labels":
        with h5py.File(path, "a") as file:
            del file["labels"]
            file["labels"] = np.zeros(47, int)
    elif damage == "nan":
        with h5py.File(path, "a") as file:
            file["features"][5, 3] = np.nan
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "text":
        path.write_text("not a feature file")
    else:
        path.unlink()
    assert main(arguments(path, tmp_path / "none")) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count("\n") == 1
    assert damage != "nan" or "005.jpg" in error
    assert not (tmp_path / "none" / "report.json").exists()


def test_the_bundled_features_refuse_another_backbone(tmp_path, capsys):
    assert main([CONFIG, f"--workdir={tmp_path}", "--config.features.backbone=vgg16"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "fgis: config.features: the bundled features: made with backbone 'mobilenet_v2', not 'vgg16'"
    )


@pytest.mark.parametrize("miner", ["semi_hard", "batch_hard"])
@pytest.mark.slow
def test_a_diverged_run_is_one_line_and_saves_nothing(miner, tmp_path, capsys):
    """Miners pass over NaN embeddings, so that their loss is a harmless 0."""
    more = ("--config.optimizer.name=sgd", "--config.optimizer.sgd.learning_rate=1e30", f"--config.miner.name={miner}")
    features = write_features(tmp_path / "features.h5")
    assert main(arguments(features, tmp_path / "run", "--config.head.name=mlp", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("fgis: training diverged: by step ")
    assert "of 8 runs have parameters that are NaN or infinite" in error
    assert not list((tmp_path / "run" / "checkpoints").glob("*/params"))
    assert not (tmp_path / "run" / "report.json").exists()


@pytest.mark.slow
def test_a_collapsed_run_is_named_on_the_terminal_and_in_the_report(tmp_path, capsys):
    hardest = (
        "--config.miner.name=hard_negatives", "--config.loss.name=triplet", "--config.head.name=mlp",
        "--config.distance=unit_euclidean", "--config.optimizer.adam.learning_rate=0.3", "--config.seeds=1",
    )  # fmt: skip
    features = write_features(tmp_path / "features.h5")
    assert main(arguments(features, tmp_path / "run", *hardest)) == 0
    assert "COLLAPSED" in capsys.readouterr().out
    assert "COLLAPSED" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "report.json").read_text())["collapsed"]


@pytest.mark.slow
def test_a_loss_that_is_always_0_is_named(tmp_path, capsys):
    features = write_features(tmp_path / "features.h5")
    more = ("--config.loss.name=triplet", "--config.loss.triplet.margin=-5", "--config.seeds=1")
    assert main(arguments(features, tmp_path / "run", *more)) == 0
    assert "NOTHING LEARNT: in 4 runs" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "report.json").read_text())["idle"] == [[0, -1], [0, 0], [0, 1], [0, 2]]
