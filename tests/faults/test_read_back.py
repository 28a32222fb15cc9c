"""The files of a work directory with unexpected content: rebuilt, or refused by name."""

import json
import shutil

import pytest

from fgis.learning import checkpoint
from tests.tiny import write_features

NO_OBJECT = {"cut": b'{"seed": 0,', "binary": b"\xff\xfe\x00", "list": b"[1]", "number": b"3", "null": b"null",
             "empty": b"", "deep": b"[" * 100_000}  # fmt: skip


@pytest.mark.parametrize("content", NO_OBJECT)
@pytest.mark.parametrize("name", ["config.json", "trained_on.json"])
def test_a_file_that_says_what_a_run_is_is_refused_by_name(name, content, unfinished, refused, train):
    (unfinished / name).write_bytes(NO_OBJECT[content])
    line = refused(*train(unfinished))
    assert line.startswith(f"fgis: {unfinished / name}: ")
    assert line.endswith("restore a copy, or remove it")
    assert (unfinished / name).read_bytes() == NO_OBJECT[content]
    refused(f"--workdir={unfinished}", "--mode=evaluate")


@pytest.mark.parametrize("content", ['{"sha256": 3, "images": 48}', '{"sha256": "00"}', "{}"])
def test_an_identity_without_a_digest_is_refused_by_name(content, unfinished, refused, train):
    (unfinished / "trained_on.json").write_text(content)
    assert "trained_on.json: holds no digest of images" in refused(*train(unfinished))


def test_a_configuration_that_its_checkpoints_do_not_have_is_refused_by_name(unfinished, refused, train):
    config = json.loads((unfinished / "config.json").read_text())
    (unfinished / "config.json").write_text(json.dumps({**config, "seed": 5}))
    line = refused(*train(unfinished))
    assert f"{unfinished}/config.json: seed: 5 here, but the checkpoint of step 12 was made with 0" in line
    assert "config.seed: 5 here, but" in refused(f"--workdir={unfinished}", "--mode=evaluate")


OTHERS = {
    "rate": "optimizer.adam.learning_rate=0.3", "rank": "head.residual.rank=3", "seeds": "seeds=1",
    "optimiser": "optimizer.name=sgd", "steps": "train.total_steps=4", "miner": "miner.name=semi_hard",
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("lost", [True, False])
def test_another_configuration_is_refused_also_where_config_json_is_lost(other, lost, unfinished, refused, train):
    if lost:
        (unfinished / "config.json").unlink()
    line = refused(*train(unfinished, f"--config.{OTHERS[other]}"))
    assert line.startswith(f"fgis: config.{OTHERS[other].partition('=')[0]}: ")
    assert (unfinished / "config.json").exists() != lost


def test_what_is_lost_is_written_anew(unfinished, trained, command, train):
    for name in ("config.json", "trained_on.json"):
        (unfinished / name).unlink()
    assert command(f"--workdir={unfinished}", "--mode=evaluate").code == 0  # from the configuration in the checkpoint
    assert command(*train(unfinished)).code == 0
    for name in ("config.json", "trained_on.json", "report.json"):
        assert (unfinished / name).read_bytes() == (trained[1] / name).read_bytes()


@pytest.mark.parametrize("lost", [True, False])
def test_features_that_were_replaced_are_noticed(lost, unfinished, features, command, refused, train, tmp_path):
    other = write_features(tmp_path / "tiny.h5", seed=9)
    if lost:
        (unfinished / "trained_on.json").unlink()
    words = [*train(unfinished), f"--config.features.path={other}"]
    assert f"config.features.path={other}: its 48 images, labels or features are not those" in refused(*words)
    ended = command(*words, "--mode=evaluate")
    assert ended.code == 0
    assert (unfinished / "evaluations" / "features=tiny" / "report.json").exists()
    assert not (unfinished / "report.json").exists()


def test_the_same_features_under_another_name_are_the_same(unfinished, features, trained, command, train, tmp_path):
    (tmp_path / "link.h5").symlink_to(features)
    shutil.copy(features, tmp_path / "copy.h5")
    for name in ("link.h5", "copy.h5"):
        assert command(*train(unfinished), f"--config.features.path={tmp_path / name}").code == 0
        evaluations = [json.loads((run / "report.json").read_text())["evaluations"] for run in (unfinished, trained[1])]
        assert evaluations[0] == evaluations[1]


RECORDS = {
    "binary": b"\xff\xfe\n", "number": b"3\n", "list": b"[2]\n", "no step": b'{"a": [1]}\n',
    "step is a text": b'{"step": "2"}\n', "step is true": b'{"step": true}\n', "no list": b'{"step": 1, "loss": 3}\n',
    "texts": b'{"step": 1, "loss": ["x"]}\n', "other width": b'{"step": 1, "loss": [1.0]}\n', "no JSON": b"{oops\n",
}  # fmt: skip


@pytest.mark.parametrize("content", RECORDS)
def test_a_line_that_is_no_record_is_named(content, unfinished, refused, train):
    log = unfinished / "metrics.jsonl"
    whole = RECORDS[content] + log.read_bytes()
    log.write_bytes(whole)
    for words in (train(unfinished), [f"--workdir={unfinished}", "--mode=evaluate"]):
        line = refused(*words)
        assert line.startswith(f"fgis: {log}:")
        assert line.endswith("(the report is then without curves)")
    assert log.read_bytes() == whole


def test_the_records_of_two_trainings_are_named(unfinished, refused, train):
    log = unfinished / "metrics.jsonl"
    log.write_bytes(2 * log.read_bytes())
    assert f"{log}:7: step 2 after step 12, as of two trainings at once" in refused(*train(unfinished))


def test_a_last_line_that_was_cut_short_is_left_out(unfinished, trained, command, train):
    with (unfinished / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 14, "lo\xff')
    assert command(*train(unfinished)).code == 0
    assert (unfinished / "metrics.jsonl").read_bytes() == (trained[1] / "metrics.jsonl").read_bytes()


REPORTS = {
    "object": '{"a": 1}', "list": "[1]", "number": "12", "step alone": '{"step": 12}', "no JSON": "{",
    "evaluations": '{"step": 12, "config": {}, "evaluations": 3}',
    "evaluation": '{"step": 12, "config": {}, "evaluations": {"closed_set": 3}}',
    "figures": '{"step": 12, "config": {"evaluation": {"published": []}}, "evaluations": '
    '{"closed_set": {"trained": []}}}',
}  # fmt: skip


@pytest.mark.parametrize("content", REPORTS)
def test_a_report_of_unexpected_content_is_written_anew(content, run, trained, command, train):
    (run / "report.json").write_text(REPORTS[content])
    ended = command(*train(run))
    assert (ended.code, ended.errors) == (0, "")
    assert (run / "report.json").read_bytes() == (trained[1] / "report.json").read_bytes()


@pytest.mark.parametrize(
    "content", ["[]", '{"version": 2}', "{", '{"version": 2, "distance": "cosine", "threshold": "x"}']
)
def test_an_operating_point_of_unexpected_content_is_none(content, run, trained, command, train):
    (run / "operating_point.json").write_text(content)
    assert command(f"--workdir={run}", "--mode=evaluate").code == 0
    assert (run / "operating_point.json").read_bytes() == (trained[1] / "operating_point.json").read_bytes()


def test_a_training_that_is_continued_has_the_bits_of_a_longer_one(run, tmp_path, command, train):
    """And its checkpoints and records may come at other steps."""
    longer = ("--config.train.total_steps=20", "--config.train.checkpoint_every_steps=6")
    ended = command(*train(run, *longer))
    assert (ended.code, ended.errors) == (0, "")
    assert "resuming at step 12 of 20" in ended.output
    assert command(*train(tmp_path / "whole", "--config.train.total_steps=20")).code == 0
    one, other = (json.loads((place / "report.json").read_text()) for place in (run, tmp_path / "whole"))
    assert one["evaluations"] == other["evaluations"]
    assert (one["step"], checkpoint.latest_step(run)) == (20, 20)
    assert json.loads((run / "config.json").read_text())["train"]["total_steps"] == 20
    assert command(f"--workdir={run}", "--mode=evaluate").code == 0
    assert not (run / "evaluations").exists()  # it is the run's own report
    assert "is finished" in command(*train(run, *longer)).output
