"""The settings of the parameter channel: what was valid stays so, and each kind has its own."""

from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError

from freshrank import config
from freshrank.channels import open_channel
from freshrank.clock import SystemClock
from freshrank.diagnostics import InvalidConfigError
from freshrank.errors import ConfigError
from freshrank.settings import Settings, SyncSettings
from freshrank.transport.directory import DirectoryChannel
from freshrank.transport.redis_channel import RedisChannel

URL: Final = "redis://127.0.0.1:1/0"
FEATURES: Final = """
features: [{name: item_id, type: id, scope: item}]
tasks: [{name: click, event: click}]
"""


@pytest.mark.parametrize("channel", ["", "channel: directory", "channel: {kind: directory}"])
def test_a_directory_is_named_as_before(channel: str) -> None:
    text = FEATURES + f"sync: {{sparse_every: 2s, {channel}}}"
    settings = config.loads(text, name="a.yaml", environ={})
    assert settings.sync.channel.kind == "directory"
    assert config.loads(config.resolved(settings), name="b.yaml", environ={}) == settings


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kind": "kafka"}, "'directory' or 'redis'"),
        ({"url": URL}, "url is of kind redis; kind is directory"),
        ({"retention": "1GiB"}, "retention is of kind redis; kind is directory"),
        ({"kind": "redis"}, "kind redis needs either url"),
        ({"kind": "redis", "url": URL, "retention": "much"}, "not a size: 'much'"),
        ({"kind": "redis", "url": "redis://u:secret@host"}, "url has a password"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        SyncSettings.model_validate({"channel": fields})


def test_a_password_in_the_configuration_is_not_printed() -> None:
    text = FEATURES + "sync: {channel: {kind: redis, url: 'redis://u:hunter2@host'}}\n"
    with pytest.raises(InvalidConfigError) as wrong:
        config.loads(text, name="a.yaml", environ={})
    assert "hunter2" not in str(wrong.value)
    assert "url has a password" in str(wrong.value)


def configured(tmp_path: Path, **channel: object) -> Settings:
    environ = {
        "FRESHRANK__SERVICE__DATA_DIR": str(tmp_path),
        **{f"FRESHRANK__SYNC__CHANNEL__{n.upper()}": str(value) for n, value in channel.items()},
    }
    return config.loads(FEATURES, name="a.yaml", environ=environ)


def test_the_configured_channel_opens_without_its_server(tmp_path: Path) -> None:
    directory = open_channel(configured(tmp_path), SystemClock())
    assert isinstance(directory, DirectoryChannel)
    assert (tmp_path / "parameters").is_dir()
    (tmp_path / "url").write_text("rediss://freshrank:hunter2@127.0.0.1:1/0\n")
    settings = configured(tmp_path, kind="redis", url_file=tmp_path / "url", retention="64MiB")
    channel = open_channel(settings, SystemClock())
    assert isinstance(channel, RedisChannel)
    channel.close()


def test_a_url_file_without_a_url_is_named_and_not_shown(tmp_path: Path) -> None:
    settings = configured(tmp_path, kind="redis", url_file=tmp_path / "url")
    for content in (None, "hunter2", "redis://u:hunter2@host:port/0"):
        if content is not None:
            (tmp_path / "url").write_text(content)
        with pytest.raises(ConfigError, match=r"sync\.channel\.url_file") as wrong:
            open_channel(settings, SystemClock())
        assert "hunter2" not in str(wrong.value)
