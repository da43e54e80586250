"""The long proofs: tests of CI, where a seeded sample of each runs, at their full scale."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Proof:
    """Tests, and the scale at which they prove something."""

    tests: tuple[str, ...]
    full: int
    unit: str  # of the scale


STORE = "tests/store/"
PROOFS = {
    "kills": Proof(("tests/fault",), 200, "times kill -9"),
    "model": Proof(("tests/property",), 2_000, "examples of up to 40 calls"),
    "fuzz-decode": Proof((STORE + "test_fuzz.py::test_fuzzed_files",), 300, "seconds of libFuzzer"),
    "fuzz-operations": Proof(
        (STORE + "test_fuzz.py::test_fuzzed_calls",), 300, "seconds of libFuzzer"
    ),
    "damage": Proof((STORE + "test_damage.py",), 2_000, "damaged copies of a large file"),
    "flood": Proof((STORE + "test_budget.py",), 60, "seconds of new ids"),
    "memory": Proof((STORE + "test_memory.py",), 1_000_000, "rows filled and expired, ten times"),
    "adversarial": Proof((STORE + "test_adversarial.py",), 10_000_000, "keys of each kind"),
    "sanitizers": Proof((STORE + "test_native_core.py",), 10, "runs of every C++ test"),
    "wheel": Proof((STORE + "test_wheel.py",), 1, "wheel, beside two releases of torch and none"),
}
