"""Reading `freshrank.yaml`: every mistake at its line and column, all at once."""

import re
from datetime import timedelta
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshrank.config import demo_text, load, loads, resolved
from freshrank.diagnostics import Diagnostic, InvalidConfigError
from freshrank.errors import ConfigError
from freshrank.features import FeatureEncoder
from freshrank.settings import Settings
from freshrank.units import duration_text

# Valid on its own; a test's text is put after it, from line 8 on.
BASE = """\
version: 1
features:
  - {name: user_id, type: id, scope: user}
  - {name: item_id, type: id, scope: item}
tasks:
  - {name: click, event: click}

"""
FEATURES = "tasks: [{name: click, event: click}]\nfeatures:\n"


def settings(text: str, **environ: str) -> Settings:
    return loads(dedent(text), name="f.yaml", environ=environ)


def found(text: str, **environ: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(InvalidConfigError) as caught:
        settings(text, **environ)
    assert caught.value.code == "config"
    return caught.value.diagnostics


def lines(text: str, **environ: str) -> list[str]:
    return [str(one) for one in found(text, **environ)]


def line(text: str, **environ: str) -> str:
    (only,) = lines(text, **environ)
    return only


def test_four_mistakes_give_four_lines_in_file_order() -> None:
    text = """\
        version: 1
        features:
          - {name: user_id, type: id, scope: user}
          - name: item_id
            type: id
            scope: item
            expire: 3 fortnights
          - {name: pair, type: cross, of: [user_id, item_idd]}
        tasks:
          - {name: click, event: click, weight: "1"}
        synk: {sparse_every: 1s}
        """
    assert lines(text) == [
        "f.yaml:7:13: error: features.1.expire: not a duration: '3 fortnights' "
        "(write 500ms, 10s, 5m, 12h or 30d)",
        "f.yaml:8:45: error: features.2.of.1: unknown feature 'item_idd'; did you mean 'item_id'?",
        "f.yaml:10:41: error: tasks.0.weight: expected a number, got '1'",
        "f.yaml:11:1: error: synk: unknown key 'synk'; did you mean 'sync'?",
    ]
    with pytest.raises(ConfigError) as caught:
        settings(text)
    errors = [
        one for one in str(caught.value).splitlines() if re.match(r".+:\d+:\d+: error: ", one)
    ]
    assert len(errors) == 4


def test_a_mistake_shows_its_line_and_a_caret() -> None:
    (one,) = found(BASE + "sync:\n  sparse_every: 5 s\n")
    _, source, caret = one.render().splitlines()
    assert source == "    9 |   sparse_every: 5 s"
    assert caret == "      |                 ^"
    assert source[caret.index("^") :] == "5 s"


def test_a_long_line_is_shown_around_the_mistake() -> None:
    (one,) = found(BASE + "model: {hidden: [64, " + " " * 200 + "x]}")
    _, source, caret = one.render().splitlines()
    assert len(source) < 140
    assert source[caret.index("^")] == "x"


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("servce: {}", "8:1: error: servce", "unknown key 'servce'; did you mean 'service'?"),
        ("log: {fsync: bach}", "8:14: error: log.fsync", "got 'bach'; did you mean 'batch'?"),
        ("service: {port: '80'}", "8:17: error: service.port", "expected an integer, got '80'"),
        ("service: {port: true}", "8:17: error: service.port", "expected an integer, got true"),
        ("service: {port: 80.0}", "8:17: error: service.port", "expected an integer, got 80.0"),
        ("service: {port: 65536}", "8:17: error: service.port", "less than or equal to 65535"),
        ("service: {name: no way}", "8:17: error: service.name", "a name of a-z, 0-9 and _"),
        ("service: {host: 1.5}", "8:17: error: service.host", "expected a string, got 1.5"),
        ("service: {data_dir: []}", "8:21: error: service.data_dir", "expected a path, got a list"),
        ("service: [1]", "8:10: error: service", "expected a mapping, got a list"),
        ("service:\nsalt: 1", "8:1: error: service", "expected a mapping, got nothing"),
        ("optimizer: {clip_norm: .nan}", "8:24: error: optimizer.clip_norm", "a finite number"),
        ("optimizer: {sparse: {kind: frtl}}", "8:28: error: optimizer.sparse.kind", "mean 'ftrl'?"),
        ("optimizer: {sparse: {l1: 1}}", "8:21: error: optimizer.sparse", "l1 is of ftrl; kind is"),
        (
            "optimizer: {sparse: {first_order: {kind: ftrl, weight_decay: 0.1}}}",
            "8:35: error: optimizer.sparse.first_order",
            "weight_decay is of sgd, adagrad, rowwise_adagrad, adam; kind is ftrl",
        ),
        (
            "optimizer: {sparse: {kind: adam, accumulator_half_life: 7d}}",
            "8:21: error: optimizer.sparse",
            "accumulator_half_life is of adagrad, rowwise_adagrad; kind is adam",
        ),
        ("optimizer: {sparse: {weight_decay: 30}}", "8:21: error", "at most 1, got 30.0 x 0.05"),
        ("optimizer: {sparse: {beta1: 0.8}}", "8:21: error: optimizer.sparse", "beta1 is of adam;"),
        (
            "optimizer: {sparse: {kind: ftrl, eps: 1e-6}}",
            "8:21: error: optimizer.sparse",
            "eps is of adagrad, rowwise_adagrad, adam; kind is ftrl",
        ),
        (
            "optimizer: {sparse: {kind: sgd, initial_accumulator: 1.0}}",
            "8:21: error: optimizer.sparse",
            "initial_accumulator is of adagrad, rowwise_adagrad, ftrl; kind is sgd",
        ),
        (
            "optimizer: {sparse: {kind: adam, beta2: 1}}",
            "8:41: error: optimizer.sparse.beta2",
            "less than 1, got 1",
        ),
        ("store: {max_bytes: 8GB}", "8:20: error: store.max_bytes", "not a size: '8GB' (write"),
        ("store: {memory: 8GiB}", "8:9: error: store.memory", "unknown key 'memory'"),
        ("store: {threads: 0}", "8:18: error: store.threads", "greater than or equal to 1, got 0"),
        ("store: {threads: 65}", "8:18: error: store.threads", "less than or equal to 64, got 65"),
        (
            "serving: {dtype: bfloat16}",
            "8:18: error: serving.dtype",
            "expected 'float32', 'float16' or 'int8', got 'bfloat16'; did you mean 'float16'?",
        ),
        (
            "optimizer: {sparse: {accumulator_half_life: 40000d}}",
            "8:45: error: optimizer.sparse.accumulator_half_life",
            "at most 36500d, got 40000d",
        ),
        ("optimizer: {sparse: {clip_norm: 0}}", "8:33: error: optimizer.sparse.clip_norm", "got 0"),
        ("sync: {sparse_every: 0s}", "8:22: error: sync.sparse_every", "at least 1ms, got 0s"),
        ("sync: {sparse_every: 9999999999d}", "8:22: error: sync.sparse_every", "too long"),
        ("log: {retention: 5ms}", "8:18: error: log.retention", "at least 1s, got 5ms"),
        ("limits: {body: 2MB}", "8:16: error: limits.body", "not a size: '2MB' (write 65536,"),
        ("limits: {body: 0}", "8:16: error: limits.body", "greater than or equal to 1"),
        ("model: {hidden: 64}", "8:17: error: model.hidden", "expected a list, got 64"),
        ("salt: -1", "8:7: error: salt", "greater than or equal to 0, got -1"),
        ("version: 1", "8:1: error: version", "key 'version' stands twice, first in line 1"),
        ("[1, 2]: 3", "8:1: error", "a key must be a word"),
        ("salt: !secret x", "8:7: error: salt", "tag '!secret' is not supported"),
        ("salt: ${SALT}", "8:7: error: salt", "environment variable 'SALT' is not set"),
        ("salt: [1", "8:", "error: not YAML: "),
        ("\tsalt: 1", "8:1: error", "not YAML: found character '\\t'"),
        ("salt: 1: 2", "8:8: error", "not YAML: mapping values are not allowed here"),
        ("salt: *seven", "8:7: error", "not YAML: found undefined alias"),
        ("salt: &a [*a]", "f.yaml: error", "too deep"),
        ("a: \x07", "f.yaml: error", "not YAML: unacceptable character"),
        ("auth: {keys: [{name: a, scopes: [rank]}]}", "8:15: error: auth.keys.0", "either sha256"),
    ],
)
def test_one_mistake_is_one_line(text: str, place: str, said: str) -> None:
    said_line = line(BASE.replace("version: 1", "version: 1") + text)
    assert place in said_line
    assert said in said_line


@pytest.mark.parametrize(
    ("feature", "place", "said"),
    [
        ("{name: x, type: idd, scope: user}", "3:21: error: features.0.type", "did you mean 'id'?"),
        ("{name: x, scope: user}", "3:5: error: features.0.type", "is required, one of 'bucket'"),
        ("{name: x, type: id}", "3:5: error: features.0.scope", "is required"),
        ("{name: x, type: id, scope: usr}", "3:32: error: features.0.scope", "mean 'user'?"),
        ("{name: X, type: id, scope: user}", "3:12: error: features.0.name", "a-z, 0-9 and _"),
        ("{name: x, type: id, scope: user, max_len: 3}", "3:38: error", "unknown key 'max_len'"),
        ("{name: x, type: id, scope: user, dim: 0}", "3:43: error: features.0.dim", "got 0"),
        ("{name: x, type: id, scope: user, admission: {min_cuont: 2}}", "3:50", "'min_count'?"),
        ("{name: x, type: id, scope: user, expire: 5ms}", "3:46", "at least 1s, got 5ms"),
        ("{name: x, type: id, scope: user, min_rows: -1}", "3:48", "or equal to 0, got -1"),
        ("{name: x, type: id, scope: user, max_bytes: 2G}", "3:49", "not a size: '2G'"),
        (
            "{name: x, type: id, scope: user, admission: {pending_bytes: 1KiB}}",
            "3:65: error: features.0.admission.pending_bytes",
            "greater than or equal to 65536, got '1KiB'",
        ),
        (
            "{name: x, type: id, scope: user, admission: {count_half_life: 40000d}}",
            "3:67: error: features.0.admission.count_half_life",
            "at most 36500d, got 40000d",
        ),
        ("3", "3:5: error: features.0", "expected a mapping, got 3"),
        (
            "{name: h, type: bucket, scope: user, boundaries: [2, 1]}",
            "3:54: error: features.0.boundaries",
            "boundaries must ascend",
        ),
        (
            "{name: p, type: dense, scope: item, transform: log1p, default: -1}",
            "3:5: error: features.0",
            "default -1.0 is below 0",
        ),
        (
            "{name: user_id, type: id, scope: item}",
            "3:12: error: features.0.name",
            "'user_id' takes the request's user",
        ),
        (
            "{name: item_id, type: bucket, scope: item, boundaries: [1]}",
            "3:12: error: features.0.name",
            "'item_id' takes the request's item",
        ),
        ("{name: r, type: recent, event: click}", "3:5: error: features.0", "feature 'item_id'"),
    ],
)
def test_a_wrong_feature_is_one_line(feature: str, place: str, said: str) -> None:
    other = "  - {name: hour, type: id, scope: context}\n" if "dense" in feature else ""
    said_line = line(f"{FEATURES}  - {feature}\n{other}")
    assert place in said_line
    assert said in said_line


@pytest.mark.parametrize(
    ("feature", "place", "said"),
    [
        ("{name: x, type: cross, of: [usr_id, item_id]}", "6:33: error", "did you mean 'user_id'?"),
        ("{name: x, type: cross, of: [user_id]}", "6:32: error: features.3.of", "at least 2 items"),
        ("{name: x, type: cross, of: [item_id, item_id]}", "6:42: error", "crossed with itself"),
        ("{name: x, type: cross, of: [user_id, price]}", "6:42", "'price' is of type dense"),
        ("{name: x, type: recent, event: click, table: item}", "6:50", "did you mean 'item_id'?"),
        ("{name: x, type: recent, event: click, table: user_id}", "6:50", "type id and scope item"),
        ("{name: item_id, type: id, scope: item}", "6:12", "already declared at features.1"),
        ("{name: x, type: id, scope: item, dim: 8}", "6:43", "8 here, 16 for 2 of 3"),
        ("{name: x, type: id, scope: item, key: int}", "6:43", "'string' or 'uint64', got 'int'"),
    ],
)
def test_a_wrong_reference_is_one_line(feature: str, place: str, said: str) -> None:
    text = (
        FEATURES
        + "  - {name: user_id, type: id, scope: user}\n"
        + "  - {name: item_id, type: id, scope: item}\n"
        + "  - {name: price, type: dense, scope: item}\n"
        + f"  - {feature}\n"
    )
    said_line = line(text)
    assert place in said_line
    assert said in said_line


def test_references_of_crosses_and_tables_that_cannot_hold() -> None:
    text = """\
        tasks: [{name: click, event: click}, {name: click, event: buy}]
        features:
          - {name: item_id, type: id, scope: item, key: uint64}
          - {name: shop, type: id, scope: item}
          - {name: a, type: id_list, scope: item, max_len: 100}
          - {name: b, type: id_list, scope: item}
          - {name: a_x_b, type: cross, of: [a, b]}
          - {name: again, type: cross, of: [a_x_b, shop]}
          - {name: last, type: recent, event: click, table: shop}
        """
    assert lines(text) == [
        "f.yaml:1:45: error: tasks.1.name: task 'click' is already declared at tasks.0",
        "f.yaml:7:36: error: features.4.of: makes up to 3200 ids of one row, 1024 are allowed: "
        "lower max_len",
        "f.yaml:8:37: error: features.5.of.0: 'a_x_b' is of type cross: it has no ids to cross",
        "f.yaml:9:53: error: features.6.table: 'shop' must have the key type of 'item_id' to hold "
        "recent items",
    ]


@pytest.mark.parametrize(
    "feature",
    ["{name: price, type: dense, scope: item}", "{name: n, type: dense, scope: candidate}"],
)
def test_some_feature_has_ids(feature: str) -> None:
    text = f"""\
        tasks: [{{name: click, event: click}}]
        features:
          - {feature}
        """
    assert lines(text) == [
        "f.yaml:3:3: error: features: none of them has ids to embed: add one of type id, id_list "
        "or bucket"
    ]


def test_live_features_name_what_makes_their_key() -> None:
    text = """\
        tasks: [{name: click, event: click}]
        features:
          - {name: item_id, type: id, scope: item}
          - {name: tags, type: id_list, scope: item}
          - {name: a, type: rate, event: click, of: item_i}
          - {name: b, type: rate, event: click, by: tags}
          - {name: c, type: count, by: item_id}
          - {name: d, type: seen, event: click}
          - {name: e, type: seen, event: click, value: age}
          - {name: f, type: cross, of: [a, item_id]}
          - {name: user_id, type: count}
        """
    assert lines(text) == [
        "f.yaml:5:45: error: features.2.of: unknown feature 'item_i'; did you mean 'item_id'?",
        "f.yaml:6:45: error: features.3.by: 'tags' is of type id_list: a key needs type id or "
        "bucket",
        "f.yaml:7:32: error: features.4.by: 'item_id' is combined with itself",
        "f.yaml:10:33: error: features.7.of.0: 'a' is of type rate: it has no ids to cross",
        "f.yaml:11:12: error: features.8.name: 'user_id' takes the request's user: make it type "
        "id, scope user, or choose another name",
    ]


def test_what_a_user_did_needs_users() -> None:
    text = """\
        tasks: [{name: click, event: click}]
        features:
          - {name: item_id, type: id, scope: item}
          - {name: new, type: seen, event: click, value: age}
          - {name: did, type: seen, event: click}
        """
    assert lines(text) == [
        "f.yaml:5:23: error: features.2.type: 'seen' needs the feature 'user_id'"
    ]


def test_the_odd_dim_is_reported_not_the_others() -> None:
    text = FEATURES + "".join(
        f"  - {{name: {name}, type: id, scope: item, dim: {dim}}}\n"
        for name, dim in (("a", 8), ("b", 16), ("c", 16))
    )
    assert line(text).startswith("f.yaml:3:43: error: features.0.dim: ")


def test_logistic_regression_takes_any_dims() -> None:
    text = BASE.replace("scope: user", "scope: user, dim: 8") + "model: {kind: logistic}"
    assert settings(text).model.kind == "logistic"


def test_missing_sections_and_an_empty_file() -> None:
    assert lines("version: 1\n") == [
        "f.yaml:1:1: error: features: is required",
        "f.yaml:1:1: error: tasks: is required",
    ]
    for text in ("", "# nothing\n", "~"):
        assert line(text) == "f.yaml: error: the file is empty"
    assert line("- 1\n") == "f.yaml:1:1: error: expected a mapping of sections at the top"


def test_aliases_that_multiply_are_refused() -> None:
    doubling = "".join(f"a{i}: &a{i} [{f'*a{i - 1}, *a{i - 1}' if i else 1}]\n" for i in range(40))
    assert "more than 20000 values" in line(doubling)


def test_anchors_share_a_part() -> None:
    text = FEATURES + (
        "  - {name: a, type: id, scope: item, admission: &rare {min_count: 2}}\n"
        "  - {name: b, type: id, scope: item, admission: *rare}\n"
    )
    first, second = settings(text).features
    assert first.model_dump()["admission"] == second.model_dump()["admission"]
    assert second.model_dump()["admission"]["min_count"] == 2


def test_yaml_1_2_facts() -> None:
    text = """\
        features:
          - {name: "no", type: id, scope: item}
          - {name: on, type: id, scope: item}
          - {name: y, type: id, scope: item}
        tasks: [{name: off, event: yes, weight: 1e-3}]
        store: {initial_rows: 5_000_000}
        salt: 012
        optimizer: {sparse: {l2: 1e-6}}
        """
    read = settings(text)
    assert [feature.name for feature in read.features] == ["no", "on", "y"]
    assert (read.tasks[0].name, read.tasks[0].event) == ("off", "yes")
    assert read.tasks[0].weight == 0.001
    assert read.store.initial_rows == 5_000_000
    assert read.salt == 12
    assert read.optimizer.sparse.l2 == 1e-6


def test_limits_and_optimizers_of_the_store() -> None:
    read = settings("""\
        features:
          - name: item_id
            type: id
            scope: item
            max_bytes: 1GiB
            min_rows: 1_000
            admission: {min_count: 3, count_half_life: 7d, pending_bytes: 64MiB}
        tasks: [{name: click, event: click}]
        store: {max_bytes: 8GiB, threads: 2}
        serving: {dtype: int8}
        optimizer: {sparse: {kind: adam, beta1: 0.8, beta2: 0.99, eps: 1e-6}}
        """)
    [spec] = FeatureEncoder(read).tables
    limits = (spec.max_bytes, spec.min_rows, spec.count_half_life_s, spec.pending_bytes)
    assert limits == (1 << 30, 1_000, 7 * 86_400, 64 << 20)
    assert (read.store.max_bytes, read.store.threads, read.serving.dtype) == (8 << 30, 2, "int8")
    sparse = read.optimizer.sparse
    assert (sparse.beta1, sparse.beta2, sparse.eps) == (0.8, 0.99, 1e-6)


def test_environment_variables_override_the_file() -> None:
    read = settings(
        BASE + "sync: {sparse_every: 1s}",
        FRESHRANK__SYNC__SPARSE_EVERY="5s",
        FRESHRANK__FEATURES__1__DIM="16",
        FRESHRANK__MODEL__HIDDEN="[8, 4]",
        FRESHRANK__SERVICE__NAME="shop",
        FRESHRANK_CONFIG="ignored",
    )
    assert read.sync.sparse_every == timedelta(seconds=5)
    assert read.model.hidden == [8, 4]
    assert read.service.name == "shop"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SYNC__SPARSE_EVERY", "soon", ":1:1: error: sync.sparse_every: not a duration: 'soon'"),
        ("SYNK__SPARSE_EVERY", "5s", ":1:1: error: synk: unknown key 'synk'; did you mean 'sync'?"),
        ("SYNC__SPARSE", "5s", ":1:1: error: sync.sparse: unknown key 'sparse'"),
        ("MODEL__HIDDEN", "[8, x]", ":1:5: error: model.hidden.1: expected an integer, got 'x'"),
        ("FEATURES__9__DIM", "8", ":1:1: error: there is no 'features.9.dim' to override"),
        ("SALT__X", "8", ":1:1: error: there is no 'salt.x' to override"),
        ("SALT", "[", ": error: not YAML"),
        ("SALT", "", ":1:1: error: salt: expected an integer, got nothing"),
    ],
)
def test_a_wrong_override_names_its_variable(name: str, value: str, said: str) -> None:
    said_line = line(BASE + "salt: 1", **{f"FRESHRANK__{name}": value})
    assert said_line.startswith(f"$FRESHRANK__{name}:")
    assert said in said_line


@pytest.mark.parametrize("kind", ["[id]", "{id: 1}"])
def test_a_cross_of_a_feature_whose_type_is_no_word_is_one_mistake(kind: str) -> None:
    features = [
        f"{{name: a, type: {kind}, scope: user}}",
        "{name: item_id, type: id, scope: item}",
        "{name: c, type: cross, of: [a, item_id]}",
    ]
    said = line(FEATURES + "".join(f"  - {feature}\n" for feature in features))
    assert "features.0.type: expected" in said


def test_mistakes_of_variables_follow_those_of_the_file() -> None:
    first, second = lines(BASE + "salt: x", FRESHRANK__SYNC__FULL_EVERY="x")
    assert first.startswith("f.yaml:8:7")
    assert second.startswith("$FRESHRANK__SYNC__FULL_EVERY:1:1")


def test_variables_stand_in_strings_and_unquoted_values() -> None:
    read = settings(
        BASE + 'service:\n  host: "${HOST}.example"\n  port: ${PORT}\n  data_dir: ${HOME}/x\n',
        HOST="12",
        PORT="8123",
        HOME="/h",
    )
    assert read.service.host == "12.example"
    assert read.service.port == 8123
    assert read.service.data_dir == Path("/h/x")


def test_a_key_hash_is_never_printed() -> None:
    text = BASE + "auth:\n  keys: [{name: a, sha256: hunter2, scopes: [rank]}]\n"
    (one,) = found(text)
    assert one.path == "auth.keys.0.sha256"
    assert "hunter2" not in one.render()
    digest = "ab" * 32
    shown = resolved(settings(text.replace("hunter2", digest)))
    assert digest not in shown
    assert "sha256: '***'" in shown


def test_resolved_settings_read_back_as_the_same() -> None:
    demo = loads(demo_text(), name="demo", environ={})
    assert loads(resolved(demo), name="resolved", environ={}) == demo


def test_the_demo_configuration_is_the_one_documented() -> None:
    demo = loads(demo_text(), name="demo", environ={})
    encoder = FeatureEncoder(demo)
    assert [slot.name for slot in encoder.slots] == [
        *("user_id", "item_id", "category", "device", "hour", "recent_items"),
        *("user_x_category", "device_x_item"),
    ]
    assert encoder.dense_names == ("price",)
    assert [table.min_count for table in encoder.tables] == [1, 1, 1, 1, 1, 2, 2]
    assert [task.name for task in demo.tasks] == ["click", "dwell"]
    assert demo.join.window == timedelta(seconds=3)
    assert demo.sync.sparse_every == timedelta(milliseconds=500)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path, environ={})
        return str(caught.value)

    missing = tmp_path / "freshrank.yaml"
    assert said(missing).startswith(f"{missing}: error: cannot read it: No such file")
    assert "freshrank config show --demo" in said(missing)
    assert "Is a directory" in said(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"version: 1\nservice: {host: caf\xe9}\n")
    assert said(latin).startswith(f"{latin}:2:1: error: not UTF-8")
    latin.write_text(BASE, "utf-8")
    assert load(latin, environ={}).service.data_dir == Path("data")


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert settings(BASE + "service: {data_dir: ~/x}").service.data_dir == Path("/h/x")


def test_a_key_cannot_break_the_line() -> None:
    (one,) = found(BASE + '"a\\nb:1:1: error: c": 1')
    assert len(str(one).splitlines()) == 1
    (one,) = found(BASE + f"{'k' * 1_000}: 1")
    assert len(str(one)) < 200


@given(st.integers(0, 10**15))
def test_durations_are_written_as_they_are_read(microseconds: int) -> None:
    duration = timedelta(microseconds=microseconds - microseconds % 1_000)
    text = BASE + f"serving: {{max_staleness: {duration_text(duration)}}}"
    assert settings(text).serving.max_staleness == duration


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for candidate in (text, BASE + text):
        try:
            assert loads(candidate, name="f", environ={}).features
        except InvalidConfigError as error:
            assert error.diagnostics  # noqa: PT017 -- either outcome is right


def test_a_probability_has_negatives_unless_told_otherwise() -> None:
    text = (
        "features: [{name: item_id, type: id, scope: item}]\n"
        "tasks:\n"
        "  - {name: buy, event: buy}\n"
        "  - {name: keep, event: keep, negative: null}\n"
        "  - {name: dwell, event: dwell, loss: huber}\n"
    )
    buy, keep, dwell = loads(text, name="test", environ={}).tasks
    assert buy.negative is not None
    assert buy.negative.sample_rate == 1.0
    assert (keep.negative, dwell.negative) == (None, None)
