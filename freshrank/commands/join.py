"""`freshrank join`: joiners of a log on Kafka, as many processes as there are partitions."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from freshrank import config, log_lines
from freshrank.clock import SystemClock
from freshrank.commands.serving import metrics_served, stopped_by_signal
from freshrank.errors import ConfigError, TransportError
from freshrank.logs import open_log
from freshrank.metrics_lag import Lag
from freshrank.states import open_state
from freshrank.transport.base import IMPRESSIONS

if TYPE_CHECKING:
    from freshrank.transport.kafka import KafkaLog

logger = logging.getLogger(__name__)

# How late a signal or a failed joiner is noticed.
_LOOK_S: Final = 0.2
_RETRY_S: Final = 2.0


def run(path: Path, *, environ: Mapping[str, str], allow_gaps: bool = False) -> None:
    """Join the partitions that the group gives this process, until stopped.

    Args:
        path: The configuration.
        environ: Environment variables.
        allow_gaps: Skip what retention removed before it was joined, and count it.

    Raises:
        ConfigError: the configuration is wrong, or its log is not on Kafka.
        SchemaError: the state was written for other tasks, or by a newer version.
        TransportError: the log cannot be reached, does not belong to the state (`state-mismatch`),
            lost what was not joined (`offset-removed`), or another process has taken a partition
            over (`fenced`); `metrics.port` is taken (`port-taken`).
    """
    settings = config.load(path, environ=environ)
    if settings.log.kind != "kafka":
        raise ConfigError(
            f"log.kind is {settings.log.kind}: such a log has one owner, which joins it as well: "
            "freshrank serve, train or demo; joiners of their own are for log.kind kafka"
        )
    log_lines.configure(settings.logging, role="join")
    clock = SystemClock()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signal())
        log = stack.enter_context(contextlib.closing(cast("KafkaLog", open_log(settings, clock))))
        from freshrank.transport.kafka_members import Membership
        from trainer.joiner.share import Share
        from trainer.joiner.transacted import GROUP

        state = stack.enter_context(contextlib.closing(open_state(settings)))
        share = Share(settings, log, clock, state, allow_gaps=allow_gaps)
        members = Membership(
            log.cluster, GROUP, IMPRESSIONS, on_assigned=share.assign, on_revoked=share.revoke
        )
        stack.callback(members.close)
        stack.callback(share.close)
        lags = [
            Lag(log, share.positions),
            Lag(log, share.archive_positions, "archive_lag_records"),
        ]
        stack.enter_context(
            metrics_served(
                settings,
                lambda: share.readings() + [reading for lag in lags for reading in lag.readings()],
            )
        )
        joined: list[int] | None = None
        while not stop.is_set() and not share.failures:
            if joined != share.partitions:
                joined = share.partitions
                names = ",".join(map(str, joined)) or "none yet"
                logger.info("joins partitions=%s of=%d", names, share.n_partitions)
            try:
                members.poll(_LOOK_S)
            except TransportError as error:  # rounds go on as long as the log takes them
                logger.warning("group=%s state=unreachable error=%s", GROUP, error)
                stop.wait(_RETRY_S)
        for failure in share.failures:
            if isinstance(failure, TransportError) and failure.code == "offset-removed":
                told = f"{failure}; to join on without what is gone: --allow-gaps"
                raise TransportError(told, code=failure.code) from failure
            raise failure
