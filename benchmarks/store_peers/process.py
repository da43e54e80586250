"""Peers in processes of their own, and turns between them and the table under test.

A peer's process gets its arguments, builds its table, prints `ready` and then answers every line
it reads, the number of a round, with the seconds that this round took it. It measures by itself:
pipes cost nothing that is counted, and a table that waits for its turn uses no processor.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.store_peers.stream import BATCH, N_ROUNDS, Stream


class PeerMissingError(Exception):
    """A peer cannot be had here; the message says why."""


# Every peer's memory comes in huge pages, as our slabs do: without them they are slower still.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

Round = Callable[[int], float]


@contextmanager
def peer(command: Sequence[str | Path]) -> Iterator[Round]:
    """Start a peer; the value is called with a round's number and returns its seconds.

    Raises:
        PeerMissingError: It ended before it was ready.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=os.environ | ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answered = process.stdin, process.stdout

    def run_round(number: int) -> float:
        print(number, file=asked, flush=True)
        return float(answered.readline())

    with process:
        if answered.readline().strip() != "ready":
            raise PeerMissingError(f"{command[0]} ended with {process.wait()} before it was ready")
        try:
            yield run_round
        finally:
            asked.close()


def rates_in_turns(
    stream: Stream,
    ours: Mapping[str, Round],
    peers: Mapping[str, Callable[[Path], Sequence[str | Path]]],
) -> dict[str, float]:
    """Rows per second of every table, the tables taking turns: the medians of the rounds.

    Args:
        stream: What all of them get.
        ours: Name -> one round of the table under test, which returns its seconds.
        peers: Name -> the command that starts a peer on the folder with the stream's files. One
            that cannot be had is left out, and standard error says why.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stream.write(Path(folder))
        calls = dict(ours)
        for name, command in peers.items():
            try:
                calls[name] = stack.enter_context(peer(command(Path(folder))))
            except PeerMissingError as error:
                print(f"no row for {name}: {error}", file=sys.stderr)
        seconds = seconds_in_turns(calls)
    return {name: stream.n_batches * BATCH / value for name, value in seconds.items()}


def seconds_in_turns(calls: Mapping[str, Round]) -> dict[str, float]:
    """Median seconds of every call over the rounds, the calls taking turns in each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(N_ROUNDS):
        for name, call in calls.items():
            seconds[name].append(call(number))
    return {name: statistics.median(values) for name, values in seconds.items()}
