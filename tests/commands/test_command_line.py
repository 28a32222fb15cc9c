"""The command line alone: what it takes, what it refuses, and that neither takes long."""

import subprocess
import sys

import pytest

from fgis.commands import COMMANDS, command_line
from fgis.errors import UserError
from fgis.main import main
from tests.tiny import CONFIG, ROOT


def refused(*arguments):
    with pytest.raises(UserError) as error:
        command_line.parse(arguments)
    line = str(error.value)
    assert "\n" not in line
    return line


def test_every_experiment_has_a_default_work_directory_of_its_own():
    def default(*more):
        return str(command_line.parse([CONFIG, *more]).workdir)

    assert default() == "runs/ukbench"
    assert default("--config.seeds=10", "--config.miner.name=semi_hard") == "runs/ukbench,miner.name=semi_hard,seeds=10"
    assert str(command_line.parse([f"{CONFIG}:published"]).workdir) == "runs/ukbench-published"


def test_a_shipped_experiment_has_a_name():
    call = command_line.parse(["--config", "ukbench:published", "--mode=train"])
    assert (call.mode, str(call.workdir)) == ("train", "runs/ukbench-published")
    assert call.config.sampler.name == "published"


def test_values_are_read_as_the_type_of_what_they_replace():
    more = (
        "--config.seeds=4", "--config.inputs.power=1", "--config.closed_set=False", "--config.head.mlp.widths=(8,6)",
        "--config.features.image_size=(64, 80)", "--config.evaluation.metrics=('map@r','map')",
        "--config.features.images=my photos",
    )  # fmt: skip
    config = command_line.parse([CONFIG, *more]).config
    assert (config.seeds, config.inputs.power, config.closed_set) == (4, 1.0, False)
    assert isinstance(config.inputs.power, float)
    assert tuple(config.head.mlp.widths) == (8, 6)
    assert tuple(config.features.image_size) == (64, 80)
    assert tuple(config.evaluation.metrics) == ("map@r", "map")
    assert config.features.images == "my photos"


def test_the_last_of_several_values_counts():
    config = command_line.parse([CONFIG, "--config.head.mlp.widths=(8,6)", "--config.head.mlp.widths=(4,)"]).config
    assert tuple(config.head.mlp.widths) == (4,)
    config = command_line.parse([CONFIG, "--config.features.pixels=(57,)", "--config.features.pixels=()"]).config
    assert tuple(config.features.pixels) == ()


def test_a_mode_has_its_own_flags():
    call = command_line.parse([CONFIG, "--mode=evaluate", "--step=3", "--neighbours"])
    assert call.options == COMMANDS["evaluate"].Options(step=3, triplets="", strict=False, neighbours=True)
    search = command_line.parse([CONFIG, "--mode=search", "--image=a.jpg", "--k=3", "--json"])
    assert (search.workdir, search.options.k, search.options.json) == (None, 3, True)
    assert "--mode=train does not read it, --mode=search does" in refused(CONFIG, "--image=a.jpg")
    assert "--mode=train does not read it, --mode=evaluate and --mode=search" in refused(CONFIG, "--step=3")
    assert "--workdir: --mode=extract does not read it" in refused(CONFIG, "--mode=extract", "--workdir=x")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--config.miner.nmae=x"], "--config.miner.nmae=x: no such key in config.miner; did you mean 'name'?"),
        (["--config.mine.name=x"], "--config.mine.name=x: no such key in config; did you mean 'miner'?"),
        (["--config.miner.semihard.margin=.3"], "no such key in config.miner; did you mean 'semi_hard'?"),
        (["--config.seed.x=1"], "config.seed is a value and holds no keys"),
        (["--config.miner=semi_hard"], "config.miner is a group of keys; write --config.miner.name=VALUE"),
        (["--config.train=3"], "config.train is a group of keys; write --config.train."),
        (["--config.seeds"], "no value; write --config.seeds=VALUE"),
        (["--config.seeds=many"], "--config.seeds=many"),
        (["--config.closed_set=perhaps"], "--config.closed_set=perhaps"),
        (["--mode=trian"], "--mode=trian"),
        (["--colour=red"], "colour"),
        (["trailing"], "trailing: not a flag"),
        (["--config=configs/nope.py"], "--config=configs/nope.py: no such file, and no shipped experiment"),
        ([f"{CONFIG}:nope"], "no such variant; write rigorous or published"),
        (["--mode=search", "--k=few"], "--k=few"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(more, line):
    assert line in refused(CONFIG, *more)


def test_without_a_configuration(tmp_path):
    assert "--config: missing" in refused()
    assert "holds no config.json of a run" in refused("--mode=evaluate", f"--workdir={tmp_path}")
    assert "--config: missing" in refused(f"--workdir={tmp_path}")  # training never guesses


def test_main_prints_the_line_and_returns_2(capsys):
    assert main([]) == 2
    assert (
        capsys.readouterr().err == "fgis: --config: missing; name an experiment, such as --config=configs/ukbench.py\n"
    )


def test_help_names_every_mode_and_flag_and_imports_neither_jax_nor_numpy():
    script = (
        "import sys; from fgis.main import main; code = main(['--help']); "
        "print([name for name in ('jax', 'numpy', 'ml_collections') if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[] 0"
    for mode, command in COMMANDS.items():
        assert f"--mode={mode}:" in done.stdout
        for name in command.Options._fields:
            assert f"--{name}  " in done.stdout
