"""Backups: whole or refused, put back whole or not at all, and learned on from."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from freshrank.backup import manifest
from freshrank.backup.swap import finish
from freshrank.clock import SystemClock
from freshrank.errors import ConfigError, DataError, SchemaError, TransportError
from freshrank.logs import open_log
from freshrank.transport.base import EXAMPLES
from freshrank.transport.directory import DirectoryChannel
from tests.programs import ended
from tests.unit.backups import CONFIG, back_up, content, learn, put_back, settings_of, totals

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose deployment is stopped."""
    directory = tmp_path_factory.mktemp("deployment") / "data"
    learn(directory, "first")
    return directory


@pytest.fixture(scope="module")
def backup(learned: Path) -> Path:
    """A backup of it."""
    destination = learned.with_name("backup")
    back_up(learned, destination)
    return destination


def test_a_restored_deployment_goes_on_where_the_backup_was_taken(
    learned: Path, backup: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    restored = put_back(directory, backup)
    assert restored.before is None
    assert restored.manifest.learned[f"{EXAMPLES}:0"] == restored.manifest.log[f"{EXAMPLES}:0"][1]
    heads = [
        DirectoryChannel(one / "parameters", clock=SystemClock()).head()
        for one in (learned, directory)
    ]
    assert heads[0] == heads[1]
    assert heads[0] is not None
    before = totals(learned)
    assert before["examples_learned"] > 0
    assert totals(directory) == before
    after = learn(directory, "second")
    assert after["examples_learned"] == 2 * before["examples_learned"]


def test_a_backup_beside_the_process_that_writes_is_what_it_has_acknowledged(
    learned: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    shutil.copytree(learned, directory)
    with_lock = open_log(settings_of(directory), SystemClock())
    back_up(directory, tmp_path / "backup")
    with pytest.raises(TransportError, match="stop the process") as caught:
        put_back(directory, tmp_path / "backup", is_forced=True)
    assert caught.value.code == "log-in-use"
    with_lock.close()
    assert put_back(directory, tmp_path / "backup", is_forced=True).before is not None


def test_every_damaged_or_missing_file_is_found_before_anything_is_touched(
    backup: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(backup, damaged)
    paths = [path for path in damaged.rglob("*") if path.is_file() and path.stat().st_size]
    paths.remove(damaged / manifest.NAME)  # has a test of its own
    assert len(paths) > 15
    for path in paths:
        data = path.read_bytes()
        for spoiled in (data[:-1], bytes([data[0] ^ 1]) + data[1:], data + b"\0", None):
            if spoiled is None:
                path.unlink()
            else:
                path.write_bytes(spoiled)
            with pytest.raises(DataError) as caught:
                put_back(tmp_path / "data", damaged)
            assert caught.value.code == "backup-damaged"
        path.write_bytes(data)
    assert not (tmp_path / "data").exists()
    put_back(tmp_path / "data", damaged)


def test_every_spoiled_byte_of_the_manifest_is_found(backup: Path, tmp_path: Path) -> None:
    data = (backup / manifest.NAME).read_bytes()
    body = len(data.rstrip())
    for at in range(0, body, 7):
        spoiled = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        (tmp_path / manifest.NAME).write_bytes(spoiled)
        with pytest.raises((DataError, SchemaError)):
            manifest.verify(tmp_path)


def test_a_backup_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_bytes(json.dumps({"v": manifest.FORMAT + 1}).encode())
    with pytest.raises(SchemaError, match="with the version that wrote it") as caught:
        manifest.verify(tmp_path)
    assert caught.value.code == "newer-version"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (CONFIG.replace("dim: 4", "dim: 8"), SchemaError),
        (CONFIG + "log: {partitions: 2}", ConfigError),
        (CONFIG + "sync: {channel: {kind: redis, url: 'redis://nowhere'}}", ConfigError),
    ],
)
def test_a_backup_of_another_configuration_is_refused(
    backup: Path, tmp_path: Path, text: str, error: type[Exception]
) -> None:
    from freshrank.backup.restore import restore

    with pytest.raises(error, match=r"freshrank\.yaml|partitions"):
        restore(settings_of(tmp_path / "data", text), backup, is_forced=False)
    assert not (tmp_path / "data").exists()


def test_what_is_there_is_refused_and_with_force_moved_aside(backup: Path, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    learn(directory, "other", n=5)
    old = content(directory)
    with pytest.raises(DataError, match="--force") as caught:
        put_back(directory, backup)
    assert caught.value.code == "not-empty"
    assert content(directory) == old
    restored = put_back(directory, backup, is_forced=True)
    assert restored.before is not None
    assert content(restored.before) == old
    assert content(directory) == {
        name: digest
        for name, digest in content(backup).items()
        if "/" in name and name.partition("/")[0] in restored.manifest.parts
    }


def test_a_restore_killed_at_any_step_leaves_the_old_or_the_new(
    learned: Path, backup: Path, tmp_path: Path
) -> None:
    program = Path(__file__).with_name("killed_restore.py")
    arguments = (str(learned), str(backup), str(tmp_path))
    done = ended(sys.executable, program, *arguments, env={"PYTHONPATH": str(ROOT)})
    outcomes = Counter(done.stdout.split())
    assert outcomes.keys() == {"old", "new"}
    assert outcomes["old"] > 20
    assert outcomes["new"] > 10
    assert done.stdout.split()[-1] == "new"


def test_whoever_opens_the_log_next_ends_a_restore(backup: Path, tmp_path: Path) -> None:
    staged = tmp_path / "data" / "restore-20261122T061500Z"
    for part in ("log", "trainer"):
        shutil.copytree(backup / part, staged / part)
    log = open_log(settings_of(tmp_path / "data"), SystemClock())
    assert log.end_offset(EXAMPLES, 0) > 0
    log.close()
    assert not staged.exists()
    assert (tmp_path / "data" / "trainer").is_dir()
    finish(tmp_path / "data")  # once more changes nothing


def test_a_backup_needs_a_new_place_of_its_own_and_something_to_keep(
    learned: Path, backup: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="new name"):
        back_up(learned, backup)
    with pytest.raises(DataError, match="lost with it"):
        back_up(learned, learned / "backup")
    with pytest.raises(DataError, match="nothing to keep"):
        back_up(tmp_path / "nobody", tmp_path / "backup")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_backup_is_refused(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no backup"):
        put_back(tmp_path / "data", learned)


def test_a_manifest_that_leads_out_of_the_backup_is_refused(tmp_path: Path) -> None:
    entry = manifest.Entry(0, "")
    files = {"trainer/../../etc/passwd": entry}
    evil = manifest.Manifest("0", "", "", 1, [], {}, "", "", {}, files)
    manifest.write(tmp_path, evil)
    with pytest.raises(DataError, match="leads out of it"):
        manifest.verify(tmp_path)
