"""The core's own tests, without Python, under sanitizers."""

from pathlib import Path

import pytest

from tests.proofs import record, scale
from tests.store.native import run

N_RUNS = scale("sanitizers", 1)


@pytest.mark.timeout(900)  # the first of a preset builds it
@pytest.mark.parametrize(
    ("preset", "test", "printed"),
    [
        ("asan", "core_tests", "core tests passed"),
        ("asan", "index_tests", "index tests passed"),
        ("asan", "budget_tests", "budget tests passed"),
        ("asan", "serving_tests", "serving tests passed"),
        ("asan", "snapshot_tests", "snapshot tests passed"),
        ("asan", "thread_tests", "thread tests passed"),
        ("tsan", "thread_tests", "thread tests passed"),
    ],
)
def test_core_is_clean_under_sanitizers(
    sanitized: dict[str, Path], preset: str, test: str, printed: str
) -> None:
    for _ in range(N_RUNS):
        assert run([str(sanitized[preset] / test)]).strip() == printed
    sanitizers = {"asan": "AddressSanitizer, UndefinedBehaviorSanitizer", "tsan": "ThreadSanitizer"}
    record(f"{test} is clean under {sanitizers[preset]}", runs=N_RUNS, reports=0)
