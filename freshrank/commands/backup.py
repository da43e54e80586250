"""`freshrank backup` and `freshrank restore`: what a deployment must keep, and back from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freshrank import config
from freshrank.backup import manifest
from freshrank.backup.manifest import Manifest
from freshrank.backup.restore import restore
from freshrank.backup.take import take
from freshrank.embedded import check_can_learn


def save(path: Path, destination: Path, *, environ: Mapping[str, str], as_json: bool) -> None:
    """Take a backup; see `freshrank.backup.take`.

    Raises:
        ConfigError: the configuration is wrong, or the extra `train` is missing beside a trainer.
        DataError: there is something at the destination, or nothing to keep.
        TransportError: what is to be copied is damaged, or a disk refused.
    """
    settings = config.load(path, environ=environ)
    if (settings.service.data_dir / "trainer").is_dir():
        check_can_learn()
    taken = take(settings, path.read_bytes(), destination)
    _tell(taken, f"{_what(taken)} in {destination}", as_json=as_json, path=destination)


def verify(source: Path, *, as_json: bool) -> None:
    """Say whether a backup is what was written; see `freshrank.backup.manifest`.

    Raises:
        DataError: it is not.
        SchemaError: a newer version wrote it.
    """
    found = manifest.verify(source)
    _tell(found, f"{source} is whole: {_what(found)}", as_json=as_json, path=source)


def load(
    path: Path, source: Path, *, is_forced: bool, environ: Mapping[str, str], as_json: bool
) -> None:
    """Put a backup in place; see `freshrank.backup.restore`.

    Raises:
        ConfigError: the configuration is wrong, or keeps other things than the backup has.
        DataError: the backup is damaged, or there is something in the data directory.
        SchemaError: the backup is of other features, or of a newer version.
        TransportError: a process has the data directory, or a disk refused.
    """
    settings = config.load(path, environ=environ)
    restored = restore(settings, source, is_forced=is_forced)
    where = settings.service.data_dir
    text = f"restored into {where}: {_what(restored.manifest)}"
    if restored.before is not None:
        text += f"\nwhat was there is in {restored.before}: remove it once all is well"
    roles = "freshrank serve" if settings.log.kind == "local" else "freshrank join, train and serve"
    text += f"\nnext: start {roles}; replicas swap to the base that the trainer publishes"
    before = None if restored.before is None else str(restored.before)
    _tell(restored.manifest, text, as_json=as_json, path=where, before=before)


def _what(found: Manifest) -> str:
    megabytes = f"{found.n_bytes / 1e6:.1f} MB"
    of = found.checkpoint or "no checkpoint yet"
    return f"{len(found.files)} files, {megabytes}, of {found.taken_at}, {of}"


def _tell(found: Manifest, text: str, *, as_json: bool, path: Path, **more: Any) -> None:
    if not as_json:
        print(text)
        return
    told = {
        "path": str(path),
        "freshrank": found.freshrank,
        "taken_at": found.taken_at,
        "schema_hash": found.schema_hash,
        "parts": found.parts,
        "files": len(found.files),
        "bytes": found.n_bytes,
        "checkpoint": found.checkpoint or None,
        "learned": found.learned,
        "log": found.log,
    }
    print(json.dumps(told | more))
