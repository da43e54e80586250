"""docs/metrics.md says of every metric what the catalogue says."""

from pathlib import Path

import pytest

from freshrank.metrics_alerts import ALERTS
from freshrank.metrics_catalogue import CATALOGUE, LABELS, full_name, unit
from tests.alert_faults import ROUNDS

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
MARK = "<!-- Below: "
FAULTS_MARK, FAULTS_END = "as what is below. -->\n", "\n<!-- End. -->"


def code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


def written() -> str:
    """What stands below the mark."""
    lines = ["", "## All metrics", ""]
    for name, one in sorted(CATALOGUE.items()):
        of_what = f" of {unit(name)}" if unit(name) else ""
        labels = f" by {code(*one.labels)}" if one.labels else ""
        lines += [f"### {full_name(name)}", ""]
        lines += [f"{one.text} A {one.kind}{of_what}{labels}, told by {code(*one.roles)}.", ""]
    lines += ["## Labels", "", "| label | values |", "|---|---|"]
    lines += [f"| {code(name)} | {text} |" for name, text in LABELS.items()]
    lines += [
        "",
        "What the outcomes mean: [semantics](semantics.md#the-joiner). The same figures and more "
        "for people:\n`GET /v1/stats`, or the page at `/ui`. What to do about an alert: "
        "[runbooks](runbooks/README.md).",
        "",
    ]
    return "\n".join(lines)


def test_the_page_lists_the_catalogue(request: pytest.FixtureRequest) -> None:
    before, mark, rest = PAGE.read_text("utf-8").partition(MARK)
    assert mark
    line, _, found = rest.partition("\n")
    if request.config.getoption("--update-golden"):
        PAGE.write_text(f"{before}{mark}{line}\n{written()}", "utf-8")
    else:
        assert found == written()


def faults() -> str:
    """Every alert, and what it was seen to tell of."""
    told: dict[str, tuple[str, str]] = {}
    for one in (one for faults in ROUNDS for one in faults):
        told |= {name: (one.text, "every run") for name in one.during}
        told |= {name: (one.text, "`make prove`") for name in (*one.later, *one.after)}
    names = [f"{one.name}/{one.window}" if one.window else one.name for one in ALERTS]
    assert set(told) == set(names)
    lines = ["", "| alert | on what runs | in |", "|---|---|---|"]
    for name in names:
        fault, where = told[name]
        lines.append(f"| {name.replace('/', ', ')} | {fault} | {where} |")
    return "\n".join([*lines, ""])


def test_the_page_says_what_each_alert_was_seen_to_tell_of(
    request: pytest.FixtureRequest,
) -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(FAULTS_MARK)
    found, end, after = rest.partition(FAULTS_END)
    assert end
    if request.config.getoption("--update-golden"):
        PAGE.write_text(before + FAULTS_MARK + faults() + end + after, "utf-8")
    else:
        assert found == faults()


def test_every_label_is_explained() -> None:
    used = {label for one in CATALOGUE.values() for label in one.labels}
    assert sorted(used) == sorted(LABELS)


def test_names_tell_kind_and_unit() -> None:
    for name, one in CATALOGUE.items():
        assert not name.endswith("_total"), "the kind says so"
        assert (one.kind == "histogram") == bool(one.buckets)
        assert one.kind != "gauge" or not name.endswith(("_sum", "_count", "_bucket"))
        assert one.roles
        if "timestamp" in name:
            assert unit(name) == "seconds"
