"""The settings of feature state: each kind has its own, and a secret stays in its file."""

from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError

from freshrank import config
from freshrank.diagnostics import InvalidConfigError
from freshrank.errors import ConfigError
from freshrank.feature_state import LocalFeatureState
from freshrank.redis_state import RedisFeatureState
from freshrank.settings import Settings
from freshrank.state_settings import StateSettings
from freshrank.states import open_state

URL: Final = "redis://127.0.0.1:1/0"
STATEFUL: Final = """
log: {kind: kafka, brokers: [127.0.0.1:9092]}
features:
  - {name: item_id, type: id, scope: item}
  - {name: clicks, type: count, event: click}
tasks: [{name: click, event: click}]
"""


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"url": URL}, "url is of kind redis; kind is local"),
        ({"prefix": "eu"}, "prefix is of kind redis; kind is local"),
        ({"kind": "redis"}, "kind redis needs either url"),
        ({"kind": "redis", "url": URL, "url_file": "url"}, "needs either url .* or url_file"),
        ({"kind": "redis", "url": "http://127.0.0.1"}, "url is none of redis://"),
        ({"kind": "redis", "url": "redis://u:secret@host"}, "url has a password"),
        ({"kind": "redis", "url": URL, "prefix": "a}"}, "match pattern"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        StateSettings.model_validate(fields)


def test_features_that_processes_share_need_redis_on_kafka() -> None:
    with pytest.raises(InvalidConfigError) as wrong:
        config.loads(STATEFUL, name="a.yaml", environ={})
    [mistake] = wrong.value.diagnostics
    assert (mistake.position.line, mistake.path) == (2, "log.kind")
    assert "clicks need state that these share: set state: {kind: redis" in mistake.text
    shared = {"FRESHRANK__STATE": f"{{kind: redis, url: '{URL}'}}"}
    assert config.loads(STATEFUL, name="a.yaml", environ=shared).state.kind == "redis"
    without = STATEFUL.replace(
        "{name: clicks, type: count, event: click}", "{name: c, type: id, scope: user}"
    )
    assert config.loads(without, name="a.yaml", environ={}).state.kind == "local"


def test_a_password_in_the_configuration_is_not_printed() -> None:
    text = STATEFUL + "state: {kind: redis, url: 'redis://u:hunter2@host'}\n"
    with pytest.raises(InvalidConfigError) as wrong:
        config.loads(text, name="a.yaml", environ={})
    assert "hunter2" not in str(wrong.value)
    assert "url has a password" in str(wrong.value)


def configured(tmp_path: Path, **state: Any) -> Settings:
    text = STATEFUL.replace("kafka, brokers: [127.0.0.1:9092]", "local")
    environ = {
        "FRESHRANK__SERVICE__DATA_DIR": str(tmp_path),
        **{f"FRESHRANK__STATE__{name.upper()}": str(value) for name, value in state.items()},
    }
    return config.loads(text, name="a.yaml", environ=environ)


def test_the_configured_state_opens_without_its_server(tmp_path: Path) -> None:
    assert isinstance(open_state(configured(tmp_path)), LocalFeatureState)
    (tmp_path / "url").write_text("redis://freshrank:hunter2@127.0.0.1:1/0\n")
    state = open_state(configured(tmp_path, kind="redis", url_file=tmp_path / "url"))
    assert isinstance(state, RedisFeatureState)
    state.close()


@pytest.mark.parametrize("content", [None, "hunter2", "redis://u:hunter2@host:port/0"])
def test_a_url_file_without_a_url_is_named_and_not_shown(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "url").write_text(content)
    with pytest.raises(ConfigError, match=r"state\.url_file") as wrong:
        open_state(configured(tmp_path, kind="redis", url_file=tmp_path / "url"))
    assert "hunter2" not in str(wrong.value)
