"""Places that cannot be written, locks, full disks, closed outputs, signals, and odd environments."""

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from fgis import files, locks
from fgis.experiment import start
from fgis.learning import checkpoint
from fgis.main import main
from tests.faults.victims import POLL, catches_signals
from tests.tiny import ROOT

HOLDER = """
import sys
from fgis.locks import only_process
with only_process(sys.argv[1], "here", sys.argv[2]):
    print("holding", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path, does="is training in it"):
    """Another process that holds a lock, and is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), does], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == b"holding\n"
        try:
            yield other.pid
        finally:
            other.kill()


def test_a_second_training_names_the_first_and_a_kill_releases_the_lock(unfinished, refused, command, train):
    with held(unfinished / "lock") as process:
        line = refused(*train(unfinished))
        assert line.startswith(f"fgis: {unfinished}: process {process} on ")
        assert line.endswith(" is training in it; wait until that one ends")
        assert "is training in it" in refused(f"--workdir={unfinished}", "--mode=evaluate")
        assert command(f"--workdir={unfinished}", "--mode=evaluate", "--step=8").code == 0  # into a folder of its own
    assert (unfinished / "lock").exists()  # left by the kill
    assert command(*train(unfinished)).code == 0
    assert not (unfinished / "lock").exists()


def test_a_second_evaluation_of_the_same_kind_names_the_first(run, refused):
    with held(run / "evaluations" / "step=8" / "lock", "is evaluating into it"):
        assert "is evaluating into it; wait" in refused(f"--workdir={run}", "--mode=evaluate", "--step=8")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(number, unfinished, command, train, monkeypatch):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    ended = command(*train(unfinished))
    assert ended.code == 0
    line = ended.line()
    assert line.startswith(f"fgis: {unfinished}: this file system cannot lock files ({os.strerror(number)})")


def test_a_lock_that_fails_otherwise_is_named(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(files.UserError, match=f"^{tmp_path}: cannot be locked \\(Input/output error\\)"):
        locks.only_process(tmp_path / "lock", tmp_path, "is training in it").__enter__()


def test_a_work_directory_that_is_a_file_is_refused(tmp_path, refused, train):
    (tmp_path / "file").write_text("mine")
    assert refused(*train(tmp_path / "file")).startswith(f"fgis: {tmp_path}/file: cannot be written")
    assert refused(*train(tmp_path / "file" / "run")).startswith(f"fgis: {tmp_path}/file/run: cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_work_directory_that_may_not_be_written_is_refused(public, features, refused, train, unprivileged):
    shutil.copy(features, public / "tiny.h5")
    public.chmod(0o555)
    with unprivileged():
        line = refused(*train(public / "run"), f"--config.features.path={public / 'tiny.h5'}")
    public.chmod(0o755)
    assert line == f"fgis: {public}/run: cannot be written (Permission denied); name another place"


@pytest.fixture
def read_only(trained, public):
    """The finished run where nobody but its owner may write."""
    shutil.copytree(trained[1], public / "run")
    shutil.copy(trained[0], public / "tiny.h5")
    for path in (public / "run").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (public / "run").chmod(0o755)
    if os.geteuid() != 0:
        for path in (*(public / "run").rglob("*"), public / "run"):
            path.chmod(path.stat().st_mode & ~0o222)
    return public / "run"


def test_a_finished_run_in_a_read_only_place_is_evaluated_and_shown(read_only, command, train, unprivileged):
    before = sorted(read_only.rglob("*"))
    features = f"--config.features.path={read_only.parent / 'tiny.h5'}"
    with unprivileged():
        evaluated = command(f"--workdir={read_only}", "--mode=evaluate", features)
        shown = command(*train(read_only), features)
        step = command(f"--workdir={read_only}", "--mode=evaluate", features, "--step=8")
    assert (evaluated.code, shown.code, step.code) == (0, 0, 0)
    assert evaluated.errors == f"fgis: {read_only}: cannot be written; the report is printed alone\n"
    assert "trained head" in evaluated.output
    assert "is finished" in shown.output
    assert sorted(read_only.rglob("*")) == before


def test_neighbours_of_a_run_in_a_read_only_place_are_refused(read_only, command, unprivileged):
    features = f"--config.features.path={read_only.parent / 'tiny.h5'}"
    with unprivileged():
        ended = command(f"--workdir={read_only}", "--mode=evaluate", features, "--neighbours")
    assert ended.code == 2
    assert ended.errors.splitlines()[-1] == (
        f"fgis: --neighbours: {read_only} cannot be written; copy the run to a place that can"
    )


def test_pages_of_a_search_in_a_read_only_run_go_elsewhere(read_only, unprivileged, public, monkeypatch, capsys):
    from fgis.commands import search

    (public / "mine").mkdir()
    (public / "mine").chmod(0o777)
    for place, found in ((public / "mine", Path("runs/search")), (public, None)):
        monkeypatch.chdir(place)
        with unprivileged():
            assert search._page_folder(read_only) == found
        assert f"{read_only}/search: cannot be written; " in capsys.readouterr().err


@contextmanager
def full_disk(kilobytes):
    """Files cannot grow beyond a size, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("kilobytes", "named"), [(1, "config.json"), (4, "metrics.jsonl"), (6, "checkpoints"), (20, "report.html")]
)
def test_a_full_disk_is_named_and_the_run_goes_on_later(kilobytes, named, tmp_path, trained, command, train):
    run = tmp_path / "run"
    with full_disk(kilobytes):
        ended = command(*train(run))
    assert ended.code == 2, ended
    line = ended.line()
    assert line.startswith(f"fgis: {run}/")
    assert "File too large" in line
    assert "run the same command again" in line
    assert not list(run.glob("*.partial"))
    ended = command(*train(run))
    assert (ended.code, ended.errors) == (0, "")
    assert (run / "report.json").read_bytes() == (trained[1] / "report.json").read_bytes()


def test_a_checkpoint_that_cannot_be_saved_names_the_one_to_go_on_from(unfinished, command, train):
    with full_disk(6):
        ended = command(*train(unfinished, "--config.train.total_steps=20"))
    assert ended.code == 2
    line = ended.line()
    assert "File too large" in line


def test_a_work_directory_deleted_while_training_is_named(tmp_path, refused, train, monkeypatch):
    save = checkpoint.save

    def save_and_delete(manager, *more):
        save(manager, *more)
        manager.wait_until_finished()
        shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(checkpoint, "save", save_and_delete)
    line = refused(*train(tmp_path / "run"))
    assert f"{tmp_path}/run/metrics.jsonl: cannot be written (No such file or directory)" in line


def test_output_that_nobody_reads_ends_quietly(unfinished, train, monkeypatch, capfd):
    class Closed:
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        flush = write

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Closed())
    assert main([str(word) for word in train(unfinished)]) == 141
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "fgis: standard output was closed: nothing was begun; run the same command again" or (
        line.startswith(f"fgis: standard output was closed: {unfinished} is saved at step 12; the same command goes on")
    )


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "agg"])
def test_figures_are_drawn_whatever_backend_is_named(backend):
    program = (
        "import os; from fgis.report import plots; from fgis.base import RunPlan;"
        "plots.curves([{'step': 1, 'loss': [1.0]}, {'step': 2, 'loss': [0.5]}], [RunPlan(0, -1)]);"
        "print(os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{backend}\n"), done.stderr


def test_no_home_and_an_unknown_user_is_no_fault(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    start.prepare_jax()


def test_a_damaged_compiled_program_is_said_once(tmp_path, capsys, monkeypatch):
    import warnings

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    start._drop_damaged(tmp_path)
    (tmp_path / "jit_f-0-cache").write_bytes(b"cut")
    for _ in range(2):
        warnings.showwarning(UserWarning(f"{start.UNREADABLE} for 'jit_f': zlib.error"), UserWarning, "x.py", 1)
    assert capsys.readouterr().err == f"fgis: {tmp_path}: a compiled program is damaged; all are compiled again\n"
    assert not list(tmp_path.iterdir())


LONG = ("--config.train.total_steps=100000", "--config.train.checkpoint_every_steps=50000")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="handlers of a process are seen in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lines", [0, 1, 5])
def test_a_signal_saves_and_says_how_to_go_on(number, lines, tmp_path, train):
    run = tmp_path / "run"
    words = [sys.executable, "-m", "fgis.main", *train(run, *LONG)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(lines):
            process.stdout.readline()
        while process.poll() is None and not catches_signals(process):  # before, nothing of this project has run
            time.sleep(POLL)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    (line,) = errors.splitlines()
    assert line.startswith(f"fgis: interrupted by {number.name}: ")
    step = checkpoint.latest_step(run)
    if lines == 5:
        assert step
        assert line.endswith(f"{run} is saved at step {step}; the same command goes on from there")
        assert f'"step": {step},' in (run / "metrics.jsonl").read_text().splitlines()[-1]
    else:
        assert step is None


LATE = """
import os, sys
from fgis import interrupts
interrupts.take_signals(lambda: "run the same command again")
class Late:
    kill, process, number = staticmethod(os.kill), os.getpid(), int(sys.argv[1])
    def __del__(self):
        self.kill(self.process, self.number)
late = Late()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_leaves_does_not_make_a_failure_of_what_is_done(number):
    done = subprocess.run([sys.executable, "-c", LATE, str(int(number))], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
