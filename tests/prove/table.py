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
    "loop-kills": Proof(
        ("tests/fault/test_loop_kafka.py",), 200, "times kill -9, each over 500 events on Kafka"
    ),
    "rebalances": Proof(
        (
            "tests/fault/test_joiner_troubles.py"
            "::test_members_that_come_and_go_without_end_lose_and_double_nothing",
        ),
        30,
        "times that a joiner comes and one goes",
    ),
    "standstill": Proof(
        ("tests/integration/service/test_services_on_kafka.py",),
        60,
        "seconds for which a broker stands still",
    ),
    "model": Proof(("tests/property",), 2_000, "examples of up to 40 calls"),
    "schedules": Proof(
        ("tests/property/test_redis_channel.py",), 1_000, "schedules of up to 30 events over Redis"
    ),
    "torn": Proof(
        ("tests/unit/service/test_service_torn.py",), 60, "seconds of reading while frames come"
    ),
    "fuzz-decode": Proof((STORE + "test_fuzz.py::test_fuzzed_files",), 300, "seconds of libFuzzer"),
    "fuzz-operations": Proof(
        (STORE + "test_fuzz.py::test_fuzzed_calls",), 300, "seconds of libFuzzer"
    ),
    "scenarios": Proof(("tests/e2e/test_scenarios.py",), 20, "seconds of the demo's audience"),
    "alerts": Proof(("tests/e2e/test_alerts_live.py",), 1, "run of every fault, not only the core"),
    "drift": Proof(("tests/e2e/test_drift.py",), 2, "times that the audience's tastes turn over"),
    "damage": Proof((STORE + "test_damage.py",), 2_000, "damaged copies of a large file"),
    "flood": Proof((STORE + "test_budget.py",), 60, "seconds of new ids"),
    "memory": Proof((STORE + "test_memory.py",), 1_000_000, "rows filled and expired, ten times"),
    "adversarial": Proof((STORE + "test_adversarial.py",), 10_000_000, "keys of each kind"),
    "sanitizers": Proof((STORE + "test_native_core.py",), 10, "runs of every C++ test"),
    "wheel": Proof((STORE + "test_wheel.py",), 1, "wheel, beside two releases of torch and none"),
}
