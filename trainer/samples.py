"""A uniform sample of a stream, of bounded size and without state beyond a counter."""

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


class Sample:
    """Keeps the n values whose hashed running number is smallest.

    Every value has the same chance to stay, and the same stream and seed give the same sample, with
    one integer to save instead of a generator's state.

    Args:
        n_max: Values kept.
        seed: Of the hash.

    Source: bottom-k sampling, Cohen & Kaplan 2007, "Summarizing data using bottom-k sketches".
    """

    def __init__(self, n_max: int, seed: int) -> None:
        self._n_max = n_max
        self._seed = np.uint64(seed)
        self._values = np.empty(0, np.int64)
        self._ranks = np.empty(0, np.uint64)
        self.n_seen = 0

    def add(self, values: I64) -> None:
        """Offer `int64[k]`."""
        numbers = np.arange(self.n_seen, self.n_seen + len(values), dtype=np.uint64)
        self.n_seen += len(values)
        ranks = np.concatenate([self._ranks, _splitmix(numbers, self._seed)])
        values = np.concatenate([self._values, values])
        if len(values) > self._n_max:
            keep = np.sort(np.argpartition(ranks, self._n_max)[: self._n_max])
            values, ranks = values[keep], ranks[keep]
        self._values, self._ranks = values, ranks

    def values(self) -> list[int]:
        """The sample, in order of arrival."""
        return [int(value) for value in self._values]

    def clear(self) -> None:
        """Begin the next sample; the running number goes on."""
        self._values, self._ranks = self._values[:0], self._ranks[:0]

    def state(self) -> dict[str, list[int]]:
        """What a checkpoint keeps."""
        return {
            "n_seen": [self.n_seen],
            "values": self.values(),
            "ranks": [int(rank) for rank in self._ranks],
        }

    def restore(self, state: dict[str, list[int]]) -> None:
        """Take over what a checkpoint kept."""
        self.n_seen = state["n_seen"][0]
        self._values = np.array(state["values"], np.int64)
        self._ranks = np.array(state["ranks"], np.uint64)


def _splitmix(numbers: U64, seed: np.uint64) -> U64:
    """One well-mixed hash per number (Steele et al. 2014, splitmix64): `uint64[n]`."""
    x = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + seed
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
