import pytest

from fgis.errors import UserError
from fgis.experiment import room
from fgis.experiment.config import read_settings
from fgis.experiment.config_file import load_config
from fgis.experiment.differences import to_plain


def settings(**keys):
    config = load_config("ukbench")
    config.update_from_flattened_dict(keys)
    return read_settings(to_plain(config))


def test_free_memory_is_that_of_the_system_or_of_a_control_group(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   5000 kB\n")
    assert room.free_memory(tmp_path, tmp_path) == 5_120_000
    for name, text in (("memory.stat", "anon 7\ninactive_file 1000\n"), ("memory.current", "4000\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "memory.max").write_text("10000\n")
    assert room.free_memory(tmp_path, tmp_path) == 7000  # pages of files that were read can be given back
    (tmp_path / "memory.max").write_text("max\n")
    assert room.free_memory(tmp_path, tmp_path) == 5_120_000
    assert room.free_memory(tmp_path / "none", tmp_path / "none") is None


def test_four_copies_of_resident_features_have_to_fit(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda: 2**30)
    room.require_room(settings(), 1 << 18, 256, resident=True)  # 256 MB
    with pytest.raises(UserError, match=r"resident_megabytes: 4096 keeps 257 MB .* takes 1028 MB .*, and 1024 MB are"):
        room.require_room(settings(), 1 << 18, 257, resident=True)
    room.require_room(settings(), 1 << 18, 257, resident=False)


def test_the_values_of_queries_have_to_fit(monkeypatch):
    """5 rows · (3 evaluations · 7 metrics + 3) · 3 seeds = 360 values a query."""
    monkeypatch.setattr(room, "free_memory", lambda: 360 * 8 * 1000)
    room.require_room(settings(), 1000, 2, resident=False)
    with pytest.raises(UserError, match=r"config\.evaluation\.queries: the values of 1001 .*queries=500, or fewer"):
        room.require_room(settings(), 1001, 2, resident=False)
    room.require_room(settings(**{"evaluation.queries": 500}), 1001, 2, resident=False)
