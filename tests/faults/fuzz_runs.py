"""Fuzzed: configurations, flags, and what is read back of a run: its JSON files, its records, its checkpoints."""

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import ukbench
from fgis.base import TrainState
from fgis.commands.command_line import parse
from fgis.errors import UserError
from fgis.experiment import head_use, identity, operating_point
from fgis.experiment.build import build_scoring
from fgis.experiment.config import CHOICES, extraction_settings, read_settings
from fgis.experiment.differences import flatten, refuse_other, to_plain
from fgis.experiment.run import Run
from fgis.learning import checkpoint
from fgis.main import main
from fgis.report import metrics_log, render, summary
from tests.faults.fuzz import Target
from tests.faults.fuzz_features import attempt
from tests.faults.mutations import NUMBERS, TEXTS, VALUES, damage_bytes, damage_json, damage_text, damage_value
from tests.tiny import CONFIG, arguments, write_features


def check_plain(config: Any) -> None:
    """What every command does first with a configuration."""
    settings = read_settings(config)
    build_scoring(settings)
    extraction_settings(settings.features)
    Run.open(config)
    with suppress(UserError):
        refuse_other(config, to_plain(ukbench.get_config()), "x")


def check_config(state: Any, content: bytes, folder: Path) -> None:
    """As the ``config.json`` of a run, by the way that commands take."""
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "config.json").write_bytes(content)
    call = parse([f"--workdir={folder / 'run'}", "--mode=evaluate"])
    assert call
    check_plain(to_plain(call.config))


def prepare_flags(folder: Path) -> list[str]:
    keys = [*flatten(to_plain(ukbench.get_config()))]
    return keys + [f"{group}.name" for group in CHOICES] + [key.rpartition(".")[0] for key in keys if "." in key]


def damage_flags(keys: list[str], rng: random.Random) -> bytes:
    values = (
        *NUMBERS,
        *TEXTS,
        True,
        False,
        None,
        "(1,2)",
        "(1,",
        "[1]",
        "(224,224)",
        "('a',)",
        "((1,2),(3,4))",
        "semi_hard",
        "mlp",
        "margin",
        "adam",
        "k_reciprocal",
        "{}",
        "1,2",
        "0x10",
        "1_000",
        "'",
        "__import__('os')",
    )
    modes = ("train", "evaluate", "extract", "index", "search", "serve", "explore", "export", "x", "")
    others = (
        "--step=1",
        "--step=x",
        "--step",
        "--triplets=x",
        "--json",
        "--nojson",
        "--k=0",
        "--help=1",
        "--shard=1/2",
        "x",
        "--shard=3/2",
        "--workdir=",
        "--workdir=/nonexistent",
        "--image=/dev/null",
        "-config.seed=3",
        "--config.=1",
        "--gallery=/nonexistent",
        "--config=nothing",
        "--config=ukbench:nothing",
        "--",
        "-",
        "--config.seed",
        "--=",
    )
    words = [CONFIG, f"--mode={rng.choice(modes)}"] if rng.random() < 0.9 else []
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = (
            rng.choice(keys)
            if rng.random() < 0.95
            else damage_text(rng.choice(keys).encode(), rng).decode(errors="replace")
        )
        words.append(f"--config.{key}={rng.choice(values)}")
    if rng.random() < 0.3:
        words.append(rng.choice(others))
    return json.dumps(words).encode()


def check_flags(keys: Any, content: bytes, folder: Path) -> None:
    # As Python gives arguments that are no UTF-8: halves of surrogate pairs from U+DC80 on.
    words = [word.replace("\ud800", "\udcff") for word in json.loads(content) if "--help" not in word]
    call = parse(words)
    if call:
        check_plain(to_plain(call.config))


class Trained(NamedTuple):
    """A finished run, in which one file at a time is damaged."""

    workdir: Path
    names: dict[str, bytes]  # files that are damaged, whole
    report: Any
    plans: Any


READ_BACK = ("metrics.jsonl", "report.json", "trained_on.json", "operating_point.json")


def prepare_run(folder: Path) -> Trained:
    features, workdir = write_features(folder / "tiny.h5"), folder / "run"
    words = arguments(features, workdir, "--config.seeds=1", "--config.folds=2", "--config.evaluation.transfer=")
    assert main(words) == 0
    call = parse(words)
    assert call
    run = Run.open(call.config, workdir)
    names = {name: (workdir / name).read_bytes() for name in READ_BACK}
    return Trained(workdir, names, json.loads(names["report.json"]), run.plans)


def damage_read_back(trained: Trained, rng: random.Random) -> bytes:
    name = rng.choice([*trained.names])
    whole = trained.names[name]
    if name == "metrics.jsonl":
        lines = whole.splitlines()
        if rng.random() < 0.7:
            place = rng.randrange(len(lines))
            lines[place] = damage_json(lines[place], rng)
            whole = b"\n".join(lines) + b"\n"
        else:
            whole = damage_text(whole, rng)
    else:
        whole = damage_json(whole, rng)
    return name.encode() + b"\n" + whole


def check_read_back(trained: Trained, content: bytes, folder: Path) -> None:
    name, _, changed = content.partition(b"\n")
    path = trained.workdir / name.decode()
    path.write_bytes(changed)

    def records() -> None:
        history = metrics_log.read_records(path, 12)
        metrics_log.collapsed_runs(history), metrics_log.idle_runs(history)
        metrics_log.rewind_records(path, 12)
        if len(changed) % 20 == 0:  # drawing takes a second
            render.report_html(trained.report, history, trained.plans, None)

    def reports() -> None:
        if report := summary.read_report(path):
            summary.report_text(report, width=80)
            head_use.why_not(str(trained.workdir), None, "auto")

    calls = {
        "metrics.jsonl": records,
        "report.json": reports,
        "trained_on.json": lambda: identity.trained_digest(trained.workdir),
        "operating_point.json": lambda: operating_point.read_point(trained.workdir, "cosine"),
    }
    try:
        calls[name.decode()]()
    finally:
        path.write_bytes(trained.names[name.decode()])


class Saved(NamedTuple):
    """Two checkpoints, and what they hold."""

    folder: Path
    files: dict[str, bytes]  # by their names below it
    like: Any
    values: dict[int, Any]


def prepare_checkpoints(folder: Path) -> Saved:
    def state(step: int) -> TrainState:
        params = {"a": jnp.full((2, 3), float(step)), "b": {"c": jnp.arange(4.0) * step}}
        return TrainState(step=jnp.full(2, step), params=params, opt_state=(jnp.ones(2) * step,), memory=())

    with checkpoint.open_checkpoints(folder / "checkpoints") as manager:
        for step in (1, 2):
            checkpoint.save(manager, state(step), {"seed": 0, "head": {"name": "mlp"}}, 1.0, "digest")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    values = {step: jax.tree.map(np.asarray, state(step).params) for step in (1, 2)}
    return Saved(folder, files, state(1), values)


def damage_checkpoint(saved: Saved, rng: random.Random) -> bytes:
    """In JSON: the name of one file and its bytes in Latin-1, or None where it is gone."""
    name = rng.choice([one for one in saved.files if "/2/" in one or rng.random() < 0.3] or [*saved.files])
    whole = saved.files[name]
    changed: bytes | None = damage_bytes(whole, rng)
    if whole.startswith(b"{") and rng.random() < 0.6:
        changed = damage_json(whole, rng)
    if rng.random() < 0.1:
        changed = None
    return json.dumps([name, None if changed is None else changed.decode("latin-1")]).encode()


def check_checkpoint(saved: Saved, content: bytes, folder: Path) -> None:
    """What is restored is what was saved at one of the steps, bit for bit."""
    name, changed = json.loads(content)
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(saved.folder, folder / "run")
    (folder / "run" / name).unlink()
    if changed is not None:
        (folder / "run" / name).write_bytes(changed.encode("latin-1"))
    quiet = lambda line: None

    def params() -> None:
        step, found, _ = checkpoint.restore_params(folder / "run", say=quiet)
        jax.tree.map(np.testing.assert_array_equal, found, saved.values[step])

    def said() -> None:
        found = checkpoint.read_saved(folder / "run")
        assert found is None or found.step in saved.values

    def latest() -> None:
        with checkpoint.open_checkpoints(folder / "run" / "checkpoints") as manager:
            found = checkpoint.restore_latest(manager, saved.like, say=quiet)
        if found:
            jax.tree.map(np.testing.assert_array_equal, found.params, saved.values[int(found.step[0])])

    attempt(params, said, latest)


def damage_config(config: Any, rng: random.Random) -> bytes:
    """Values of other keys and of ``VALUES``, and other names of choices."""
    if rng.random() < 0.1:
        return damage_json(json.dumps(config).encode(), rng)
    changed = damage_value(config, rng, (*VALUES, "semi_hard", "mlp", (3,), [4, 2], [[224, 224]]))
    if isinstance(changed, dict) and rng.random() < 0.5:
        group = rng.choice([*CHOICES])
        if isinstance(changed.get(group), dict):
            changed[group]["name"] = rng.choice([*CHOICES[group]])
    return json.dumps(changed).encode()


TARGETS = {
    "config": Target(lambda folder: to_plain(ukbench.get_config()), damage_config, check_config),
    "flags": Target(prepare_flags, damage_flags, check_flags),
    "read_back": Target(prepare_run, damage_read_back, check_read_back),
    "checkpoint": Target(prepare_checkpoints, damage_checkpoint, check_checkpoint),
}
