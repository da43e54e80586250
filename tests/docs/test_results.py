"""benchmarks/RESULTS.md does not contradict itself, nor does the README say otherwise."""

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "benchmarks" / "RESULTS.md"
# Rows whose goal is the most that may be: times, sizes, what is off.
_AT_MOST: Final = re.compile(
    r"(_ms|_seconds|_p50|_p99|_off|_per_row\w*|_per_pending_id|_vs_idle|_vs_p99|_vs_bare_loop|_vs_10m|_vs_well|"
    r"_end|_mean_over_growth)$"
)
_RATIOS: Final = {
    ("learner", "learner_vs_torch_sparse"): (
        "learner_examples_per_second",
        "torch_sparse_examples_per_second",
    ),
    ("replay", "replay_vs_torch_sparse"): (
        "replay_examples_per_second",
        "torch_sparse_examples_per_second",
    ),
    ("stream", "joiner_vs_quix_streams"): (
        "joiner_events_per_second",
        "quix_streams_events_per_second",
    ),
    ("stream", "trainer_vs_dense_only"): (
        "trainer_examples_per_second",
        "dense_only_examples_per_second",
    ),
    ("stream", "trainer_vs_torch_sparse"): (
        "trainer_examples_per_second",
        "torch_sparse_examples_per_second",
    ),
    ("sync", "event_to_score_p50_vs_bare_loop"): (
        "event_to_score_p50_ms",
        "event_to_score_bare_loop_p50_ms",
    ),
    ("sync", "rank_p99_under_deltas_vs_idle"): ("rank_p99_under_deltas", "rank_p99_idle"),
}
# What a row of the README's table is of, as far as the page of results has it.
_QUOTED: Final = {
    "news, 400,000": [("replay", "news_auc_second_half"), ("replay", "news_vw_auc_second_half")],
    "the same with parameters": [
        ("replay", f"news_sync_{minutes}m_auc_second_half") for minutes in (10, 60, 360)
    ],
    "the same as JSON lines": [("replay", "news_events_auc_second_half")],
    "MovieLens": [("replay", "ml100k_auc_second_half")],
    "a plain torch loop": [("replay", "replay_vs_torch_sparse")],
    "joiner, one process": [
        (section, "joiner_events_per_second") for section in ("joiner", "stream")
    ],
    "table: read": [
        ("store", "update_vs_torch_sparse_1m_d16_zipf"),
        ("store", "update_vs_torch_sparse_1m_d16_uniform"),
        ("store", "update_vs_fbgemm_cpu_10m_d16"),
    ],
}


def rows() -> dict[tuple[str, str], tuple[float, float | None, str]]:
    """(section, name) -> value, goal and mark."""
    found = {}
    for section in RESULTS.read_text("utf-8").split("\n## ")[1:]:
        title = section.partition("\n")[0]
        for line in section.splitlines():
            cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
            if line.startswith("| ") and cells[0] != "name":
                name, value, _, goal, mark = cells
                found[title, name] = (float(value), float(goal) if goal else None, mark)
    return found


def test_each_mark_follows_from_value_and_goal() -> None:
    wrong = []
    for (title, name), (value, goal, mark) in rows().items():
        if goal is None:
            assert mark == "", name
        elif (value <= goal if _AT_MOST.search(name) else value >= goal) != (mark == "yes"):
            wrong.append(f"{title}: {name} {value} {goal} {mark}")
    assert wrong == []


@pytest.mark.parametrize("of", list(_RATIOS), ids=lambda of: of[1])
def test_each_ratio_is_that_of_its_rows(of: tuple[str, str]) -> None:
    found = rows()
    above, below = (found[of[0], name][0] for name in _RATIOS[of])
    # Medians of interleaved rounds: their ratio is not quite that of the medians.
    assert found[of][0] == pytest.approx(above / below, rel=0.25)


@pytest.mark.parametrize("row", _QUOTED)
def test_the_readme_says_what_was_measured(row: str) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    [line] = re.findall(rf"^\|.*{re.escape(row)}.*$", readme, re.MULTILINE)
    figures = re.findall(r"\d*\.?\d+", line.strip("|").rpartition("|")[2].replace(",", ""))
    measured = [rows()[of][0] for of in _QUOTED[row]]
    told = [float(one) for one in figures[: len(measured)]]
    assert told == pytest.approx(measured, rel=0.03)  # rounded
