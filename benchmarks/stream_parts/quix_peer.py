"""The join as one writes it with Quix Streams; runs in an environment of its own.

    python quix_peer.py BROKER IMPRESSIONS ACTIONS N_RECORDS STATE_DIR

Prints the seconds from its first record to its last.
"""

import sys
import time
from typing import Any, Final

import msgpack  # type: ignore[import-not-found]
from quixstreams import Application  # type: ignore[import-not-found]
from quixstreams.models.serializers import Deserializer  # type: ignore[import-not-found]

WINDOW_MS: Final = 330_000  # window and allowed lateness of the joiner's defaults


class Msgpack(Deserializer):  # type: ignore[misc]
    """Our messages."""

    def __call__(self, value: bytes, ctx: object) -> Any:
        """Decode one."""
        return msgpack.unpackb(value)


def event_time(value: dict[str, Any], *_: object) -> int:
    """Milliseconds."""
    return int(value["ts"])


def merge(action: dict[str, Any], impression: dict[str, Any]) -> dict[str, Any]:
    """A positive."""
    return {**impression, "item": action["item"]}


def main(broker: str, impressions: str, actions: str, n_records: str, state_dir: str) -> None:
    """Join everything."""
    n_left = int(n_records)
    began_s = ended_s = 0.0

    def processed(*_: object) -> None:
        nonlocal n_left, began_s, ended_s
        began_s = began_s or time.perf_counter()
        n_left -= 1
        if n_left == 0:
            ended_s = time.perf_counter()
            app.stop()

    app = Application(
        broker,
        consumer_group=f"{impressions}.quix",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=state_dir,
        loglevel="WARNING",
        on_message_processed=processed,
    )
    options = {"value_deserializer": Msgpack(), "timestamp_extractor": event_time}
    shown = app.dataframe(app.topic(impressions, **options))
    acted = app.dataframe(app.topic(actions, **options))
    joined = acted.join_interval(
        shown, how="inner", on_merge=merge, grace_ms=WINDOW_MS, backward_ms=WINDOW_MS
    )
    joined.to_topic(app.topic(f"{impressions}.joined", value_serializer="json"))
    app.run()
    print(ended_s - began_s)


if __name__ == "__main__":
    main(*sys.argv[1:])
