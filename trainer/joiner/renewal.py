"""Keeps the changelog short: the state is written to it once more, a piece in each round.

Once the last piece is committed, all that stands before the first one can go: replayed from there,
pieces and changes in their order give every row again. Nothing waits for it, and no transaction is
larger than two rounds.
"""

from typing import Final

from trainer.joiner.changes import TABLES, Rows
from trainer.joiner.state import State

# A changelog of so much is replayed in a second.
BYTES_MIN: Final = 16 << 20
# A piece is as large as its round, and beside the least of rounds no less than this share of
# `bytes_min` (64 KiB): a joiner with little to do finishes as well.
_PIECES_MAX: Final = 256
_FIRST_KEY: Final = -(1 << 63)


class Renewal:
    """Says what to write once more, and how far the changelog can be cut.

    Args:
        state: The database, as it is before each round.
        n_bytes: Of the changelog.
        bytes_min: Nothing is written again before the changelog has so many, or three times what
            the state took last time.

    Attributes:
        n_bytes: Of the changelog, as far as it is needed.
    """

    def __init__(self, state: State, n_bytes: int, bytes_min: int = BYTES_MIN) -> None:
        self._state = state
        self._bytes_min = bytes_min
        self.n_bytes = n_bytes
        self._n_state = 0  # of all pieces together
        self._n_new = 0  # since the first piece, itself included
        self._first: int | None = None  # offset of the first piece
        self._is_on = self._is_wanted = False
        # Tables not written yet and their last keys when the first piece was: what comes later
        # stands behind it.
        self._left: list[tuple[str, int]] = []
        self._key = _FIRST_KEY

    def want(self) -> None:
        """Begin with the next round, or once more after the one that is on.

        What was removed from the state still stands in what is cut then.
        """
        self._is_wanted = True

    def piece(self, n_bytes: int) -> Rows:
        """The rows to write with a round of so many bytes; none most of the time."""
        if not self._is_on:
            is_long = self.n_bytes >= max(self._bytes_min, 3 * self._n_state)
            if not (is_long or self._is_wanted):
                return {}
            self._is_wanted = False
            self._is_on, self._first, self._n_new, self._n_state = True, None, 0, 0
            self._left = [(table, self._state.last_key(table)) for table in TABLES]
            self._key = _FIRST_KEY
        n_wanted = max(n_bytes, self._bytes_min // _PIECES_MAX)
        rows: Rows = {}
        while self._left and n_wanted > 0:
            table, last = self._left[0]
            some, n_taken = self._state.rows_between(table, self._key, last, n_wanted)
            if some:
                rows[table] = some
                self._key = some[-1][0]
            if n_taken < n_wanted:
                self._left, self._key = self._left[1:], _FIRST_KEY
            n_wanted -= n_taken
            self._n_state += n_taken
        return rows

    def committed(self, offset: int, n_bytes: int) -> int | None:
        """The round stands at this offset with so many bytes.

        Returns:
            The offset before which nothing is needed any more, when that has changed.
        """
        self.n_bytes += n_bytes
        self._n_new += n_bytes
        if not self._is_on:
            return None
        if self._first is None:
            self._first = offset
        if self._left:
            return None
        self._is_on, self.n_bytes = False, self._n_new
        return self._first
