"""What may happen to the group and the topics of joiners on Kafka, one case each."""

import signal
import subprocess
import threading
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from freshrank import config
from freshrank.clock import SystemClock
from freshrank.errors import TransportError
from freshrank.feature_state import LocalFeatureState
from freshrank.transport import kafka_topics
from freshrank.transport.base import (
    ACTIONS,
    DEAD_LETTER_SUFFIX,
    EXAMPLES,
    IMPRESSIONS,
    JOINER_STATE,
    TopicPartition,
)
from freshrank.transport.kafka import KafkaLog
from freshrank.transport.kafka_members import Membership
from freshrank.worker import Worker
from tests.fault.joined_on_kafka import (
    Joined,
    OnKafka,
    Watch,
    joiner_of,
    oracle,
    outputs,
    record_log,
)
from tests.integration.transport.log_checks import DEADLINE_S, eventually
from tests.proofs import record, scale
from tests.servers import NewCluster
from trainer.joiner import Joiner, changelog
from trainer.joiner.share import Share
from trainer.joiner.transacted import GROUP, Transacted

N_BEATS = scale("rebalances", 15)  # a joiner comes at each, and one goes
PLACE = TopicPartition(ACTIONS, 0)


def told(
    directory: Path, new_cluster: NewCluster, n_partitions: int = 1, n_requests: int = 600
) -> tuple[OnKafka, Joined]:
    """A recorded log on Kafka, and what the oracle makes of it."""
    recorded, copy = directory / "recorded", directory / "copy"
    for one in (recorded, copy):
        record_log(one, n_partitions, n_requests)
    joined = OnKafka(new_cluster(n_partitions), recorded, directory, n_partitions)
    return joined, oracle(copy, n_partitions)


class Member(threading.Thread):
    """What `freshrank join` runs, in this process: there are more of them in a second.

    Args:
        joined: Where the log is.
        name: Of its data directory.
    """

    def __init__(self, joined: OnKafka, name: str) -> None:
        super().__init__(name=name)
        self._joined = joined
        self._settings = config.load(joined.config(name), environ={})
        self.must_end = threading.Event()
        self.failures: list[Exception] = []
        self.n_stalls = 0
        self.start()

    def run(self) -> None:
        settings, cluster = self._settings, self._joined.cluster
        with ExitStack() as stack:
            log = KafkaLog(cluster, n_partitions=settings.log.partitions, stall_s=5.0)
            stack.callback(log.close)
            share = Share(settings, log, SystemClock(), LocalFeatureState(settings))
            members = Membership(
                cluster, GROUP, IMPRESSIONS, on_assigned=share.assign, on_revoked=share.revoke
            )
            stack.callback(members.close)
            stack.callback(share.close)
            while not self.must_end.is_set() and not share.failures:
                members.poll(0.1)
            self.failures = share.failures
            self.n_stalls = log.n_stalls


def test_members_that_come_and_go_without_end_lose_and_double_nothing(
    new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Joiner, "n_read_max", 20)
    joined, expected = told(tmp_path, new_cluster, n_partitions=4, n_requests=60 * N_BEATS)
    limits = [expected.n_rows * beat // (N_BEATS + 2) for beat in range(1, N_BEATS + 1)]
    with closing(KafkaLog(joined.cluster, n_partitions=4)) as log:
        watch = Watch(log)
        members = [Member(joined, f"member-{n}") for n in range(2)]
        try:
            for limit in limits:
                watch.until(limit)  # work is under way at each beat
                members[-2].must_end.set()
                members.append(Member(joined, f"member-{len(members)}"))
            watch.until(expected.n_rows)
        finally:
            for member in members:
                member.must_end.set()
            for member in members:
                member.join(DEADLINE_S)
        assert [member.failures for member in members] == [[]] * len(members)
        assert sum(member.n_stalls for member in members) == 0
        assert joined.result(log) == expected
    record(
        "joiners on Kafka that come and go while they join: each example once, no consumer stalls",
        joined=N_BEATS, left=N_BEATS, examples=expected.n_rows, lost_or_doubled=0,
    )  # fmt: skip


@pytest.mark.parametrize("topic", [IMPRESSIONS, ACTIONS])
def test_partitions_raised_under_a_joiner_end_it_with_the_way_out(
    topic: str, new_cluster: NewCluster, tmp_path: Path
) -> None:
    joined, expected = told(tmp_path, new_cluster)
    with closing(KafkaLog(joined.cluster, verify_s=600.0)) as log:  # it reads on
        process = joined.start(stderr=subprocess.PIPE)
        Watch(log).until(expected.n_rows // 4)
        with joined.cluster.admin() as admin:
            admin.create_partitions({joined.cluster.name(topic): 2})
        for one in (process, joined.start("started-again", stderr=subprocess.PIPE)):
            with one:
                _, said = one.communicate(timeout=DEADLINE_S)
            assert one.returncode == 3
            assert b"another number needs new topics, under another log.prefix" in said
        rows = outputs(log, joined.settings)[0][0]
    assert rows == expected.rows[0][: len(rows)]
    assert len(rows) >= expected.n_rows // 4


def through(log: KafkaLog) -> int:
    """The next action to be joined, as the last round that is committed says."""
    rounds = changelog.rounds_from(log, TopicPartition(JOINER_STATE, 0), 0)
    *_, (_, last) = rounds
    return last.changes.meta[f"{ACTIONS}:0"]


def test_input_that_retention_removed_is_refused_unless_gaps_are_allowed(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    joined, expected = told(tmp_path, new_cluster)
    assert joined.start(CRASH_AFTER="9").wait(DEADLINE_S) == -signal.SIGKILL
    with closing(KafkaLog(joined.cluster)) as log:
        reached, end = through(log), log.end_offset(*PLACE)
        start = (reached + end) // 2
        assert reached < start
        log.remove_before(*PLACE, start)
        n_rows = len(outputs(log, joined.settings)[0][0])

        with joined.start(stderr=subprocess.PIPE) as refused:
            _, said = refused.communicate(timeout=DEADLINE_S)
        assert refused.returncode == 3
        assert b"was removed by retention" in said
        assert b"--allow-gaps" in said
        assert through(log) == reached

        process = joined.start("a", "--allow-gaps")
        try:
            eventually(lambda: through(log) == end)
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
        found = joined.result(log)
    assert found.totals["gap_records"] == start - reached
    assert found.totals["accepted_impressions"] == expected.totals["accepted_impressions"]
    n_actions = expected.totals["accepted_actions"]
    assert found.totals["accepted_actions"] == n_actions - (start - reached)
    assert found.rows[0][:n_rows] == expected.rows[0][:n_rows]
    positive = [(row.request, row.item, row.labels) for row in found.rows[0] if row.is_action]
    assert len(positive) == len(set(positive))


def settle(joiner: Joiner) -> None:
    """Join what is there."""
    while joiner.step(0.0):
        pass


def test_dead_letters_that_are_not_taken_stop_their_partition_until_they_are(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    joined, expected = told(tmp_path, new_cluster, n_requests=200)
    cluster, letters = replace(joined.cluster, timeout_ms=1_500), ACTIONS + DEAD_LETTER_SUFFIX
    with (
        closing(KafkaLog(cluster)) as log,
        closing(log.transactions("joiner-0")) as transactions,
        closing(joiner_of(joined.settings, log, 0, tmp_path / "cache", transactions)) as joiner,
    ):
        with cluster.admin() as admin:
            admin.delete_topics([cluster.name(letters)])
            eventually(lambda: letters not in kafka_topics.described(admin, cluster))
        worker = Worker("joiner-0", joiner.step)  # as `freshrank join` has it
        worker.start()
        eventually(lambda: worker.n_retries >= 2)  # the alert StepsFail tells of that
        worker.stop()
        # Nothing of the round is there, the examples beside the letter least of all.
        assert [log.read(topic, 0, 0) for topic in (EXAMPLES, JOINER_STATE)] == [[], []]
        with cluster.admin() as admin:
            kafka_topics.create(admin, cluster, kafka_topics.TopicPlan(1))
        settle(joiner)
        assert joiner.accounting() == expected.totals
        assert outputs(log, joined.settings) == (expected.rows, expected.letters)


def test_the_group_hears_now_and_then_what_is_joined_and_nobody_else_may_change_it(
    new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transacted, "tell_every_s", 1_000.0)
    monkeypatch.setattr(Joiner, "n_read_max", 20)
    joined, expected = told(tmp_path, new_cluster, n_requests=200)

    def opened() -> AbstractContextManager[Joiner]:
        return closing(joiner_of(joined.settings, log, 0, tmp_path / "cache", transactions))

    with (
        closing(KafkaLog(joined.cluster)) as log,
        closing(log.transactions("joiner-0")) as transactions,
    ):
        end = log.end_offset(*PLACE)
        with opened() as joiner:
            settle(joiner)
            eventually(lambda: log.committed(GROUP)[PLACE] == 20)  # the first round
            assert through(log) == end
        with opened() as joiner:  # which has nothing to join
            settle(joiner)
            eventually(lambda: log.committed(GROUP)[PLACE] == end)
            assert joiner.accounting() == expected.totals
        assert outputs(log, joined.settings) == (expected.rows, expected.letters)
        monkeypatch.setattr(Transacted, "group_wait_s", 0.3)
        for at in (end - 1, end + 1):
            log.commit(GROUP, {PLACE: at})
            with pytest.raises(TransportError, match="changed by other means") as refused, opened():
                pass
            assert refused.value.code == "state-mismatch"


def test_a_group_whose_offsets_are_shown_late_is_waited_for(
    new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transacted, "group_wait_s", DEADLINE_S)
    joined, expected = told(tmp_path, new_cluster, n_requests=200)
    with (
        closing(KafkaLog(joined.cluster)) as log,
        closing(log.transactions("joiner-0")) as transactions,
    ):
        with closing(joiner_of(joined.settings, log, 0, tmp_path / "cache", transactions)) as first:
            settle(first)
            assert first.accounting() == expected.totals
        late, committed = iter([{PLACE: 1}] * 3), log.committed
        monkeypatch.setattr(log, "committed", lambda group: next(late, None) or committed(group))
        with closing(joiner_of(joined.settings, log, 0, tmp_path / "cache", transactions)) as next_:
            settle(next_)
            assert next_.accounting() == expected.totals
        assert next(late, None) is None


@pytest.mark.parametrize(("part", "name"), [("_state", "note"), ("_watch", "committed")])
def test_a_joiner_that_fails_right_behind_its_commit_sees_it_and_goes_on(
    part: str, name: str, new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Joiner, "n_read_max", 10)
    joined, expected = told(tmp_path, new_cluster, n_requests=200)
    with (
        closing(KafkaLog(joined.cluster)) as log,
        closing(log.transactions("joiner-0")) as transactions,
        closing(joiner_of(joined.settings, log, 0, tmp_path / "cache", transactions)) as joiner,
    ):
        owner = getattr(joiner, part)
        calls, whole = count(), getattr(owner, name)

        def fail(*arguments: object) -> None:
            if next(calls) % 2:
                raise OSError("the disk is full")
            whole(*arguments)

        monkeypatch.setattr(owner, name, fail)
        n_failures = 0
        while True:
            try:
                if not joiner.step(0.0):
                    break
            except (OSError, TransportError) as error:
                if "the disk is full" not in str(error):
                    raise
                n_failures += 1
        assert n_failures >= 10
        assert joiner.accounting() == expected.totals
        assert outputs(log, joined.settings) == (expected.rows, expected.letters)
