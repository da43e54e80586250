"""In which open requests a user is named: nothing but the records themselves knows."""

import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from trainer.joiner.requests import decode_extra
from trainer.joiner.sweeper import number_of

AreUser = Callable[[list[str]], npt.NDArray[np.bool_]]

# Hashed at a time.
_USERS_MAX: Final = 4_096


class _Named(msgspec.Struct, gc=False):
    """Of an impression's record all that is looked at."""

    user: str | None = None


_decoder: Final = msgspec.msgpack.Decoder(_Named)


def requests_of(database: sqlite3.Connection, are_user: AreUser) -> list[str]:
    """Ids of the requests in whose impressions, or waiting actions, a user is named.

    Looks at every open request: 3 microseconds each.

    Args:
        database: Of a joiner.
        are_user: Which of these canonical users it is, `bool[n]`.
    """
    numbers: set[int] = set()
    named = _named(database)
    while some := list(islice(named, _USERS_MAX)):
        found = are_user([user for _, user in some])
        numbers.update(some[i][0] for i in np.flatnonzero(found))
    sql = "SELECT request_id FROM requests WHERE number = ?"
    found_ids = (database.execute(sql, (number,)).fetchone() for number in sorted(numbers))
    return [row[0] for row in found_ids if row is not None]


def _named(database: sqlite3.Connection) -> Iterator[tuple[int, str]]:
    """Number of a request, and a user it names."""
    for place, value in database.execute("SELECT place, value FROM parts"):
        if (user := _decoder.decode(value).user) is not None:
            yield number_of(place), user
    for number, data in database.execute(
        "SELECT number, extra FROM requests WHERE extra IS NOT NULL"
    ):
        extra = decode_extra(data)
        users = {extra.user, *(action.user for _, action in extra.parked)}
        yield from ((number, user) for user in users if user is not None)
