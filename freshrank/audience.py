"""A simulated audience: who asks, what they like, how that drifts. Not data about anybody.

The world: items belong to categories and differ in quality; users belong to cohorts that like some
categories. Every `drift_s` seconds of event time the cohorts' likings have turned by a quarter
circle, and new items keep arriving, so a model that stops learning is wrong within a minute. All
draws come from one seeded generator and are made for many requests at once.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CATEGORIES = (
    "jazz", "chess", "hiking", "cinema", "cooking", "running",
    "travel", "physics", "garden", "comics", "sailing", "poetry",
)  # fmt: skip
DEVICES = ("phone", "tablet", "laptop")
FEATURES = ("category", "price", "device", "hour")  # what it sends, by their names
N_COHORTS = 8


@dataclass(frozen=True, slots=True)
class Ask:
    """One rank request of the audience."""

    user: int
    device: str
    hour: int
    candidates: npt.NDArray[np.int64]


class Audience:
    """Seeded users, items and tastes.

    Args:
        seed: Seed of every draw.
        n_users: Users who ask.
        n_items: Items at the start; one more arrives every `arrival_s` seconds.
        drift_s: Seconds in which tastes turn by a quarter circle.
        arrival_s: Seconds between new items.

    Example:
        >>> audience = Audience(seed=1)
        >>> [ask] = audience.asks(1, at_s=0.0)
        >>> len(ask.candidates)
        20
    """

    N_CANDIDATES = 20
    # About one shown item in five is clicked once the ranking is good: enough to learn from in
    # seconds. Knowing the truth would give an AUC near 0.85; a minute of learning reaches 0.75.
    BASE_LOGIT = -2.6

    def __init__(
        self,
        *,
        seed: int,
        n_users: int = 200,
        n_items: int = 300,
        drift_s: float = 120.0,
        arrival_s: float = 2.0,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._n_items = n_items
        self._drift_s = drift_s
        self._arrival_s = arrival_s
        self.cohort = self._rng.integers(N_COHORTS, size=n_users)
        self._phase = self._rng.uniform(0, 2 * np.pi, (N_COHORTS, len(CATEGORIES)))
        # Items to come are drawn now, so that item k is the same however fast the run is.
        n_ever = n_items + 100_000
        self.category = self._rng.integers(len(CATEGORIES), size=n_ever)
        is_in = self.category[:, None] == np.arange(len(CATEGORIES))
        self._number = (np.cumsum(is_in, axis=0)[np.arange(n_ever), self.category]).tolist()
        self.price = np.round(self._rng.lognormal(2.5, 0.8, n_ever), 2)
        self._quality = self._rng.normal(0.0, 1.2, n_ever)

    @property
    def n_users(self) -> int:
        """Users who ask."""
        return len(self.cohort)

    def n_items(self, at_s: float) -> int:
        """Items that exist at `at_s` seconds, until all that were drawn have arrived."""
        return min(self._n_items + int(at_s / self._arrival_s), len(self.category))

    def user_name(self, user: int) -> str:
        """The user's id as events carry it."""
        return f"user-{user}"

    def item_name(self, item: int) -> str:
        """The item's id as events carry it: its category, and its number in that."""
        return f"{CATEGORIES[self.category[item]]}-{self._number[item]}"

    def item_features(self, item: int) -> dict[str, str | float]:
        """What the catalogue says of the item."""
        return {
            "category": CATEGORIES[self.category[item]],
            "price": float(self.price[item]),
        }

    def asks(self, n: int, *, at_s: float) -> list[Ask]:
        """Make n requests at one instant, each with `N_CANDIDATES` distinct items."""
        users = self._rng.integers(self.n_users, size=n)
        devices = self._rng.integers(len(DEVICES), size=n)
        keys = self._rng.random((n, self.n_items(at_s)))
        candidates = np.argpartition(keys, self.N_CANDIDATES, axis=1)[:, : self.N_CANDIDATES]
        hour = int(at_s / 3_600) % 24
        return [
            Ask(int(user), DEVICES[device], hour, row)
            for user, device, row in zip(users, devices, candidates, strict=True)
        ]

    def flip(self) -> None:
        """Let every cohort like from now on what it disliked. Safe for threads."""
        self._phase = self._phase + np.pi

    def click_probability(
        self, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64], *, at_s: float
    ) -> npt.NDArray[np.float64]:
        """The truth: `float64[n]` for n (user, item) pairs at `at_s` seconds."""
        turn = at_s / self._drift_s * (np.pi / 2)
        taste = np.cos(self._phase[self.cohort[users], self.category[items]] + turn)
        logit = self.BASE_LOGIT + self._quality[items] + 2.4 * taste
        probability: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logit))
        return probability

    def clicks(
        self, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64], *, at_s: float
    ) -> npt.NDArray[np.bool_]:
        """Which of n shown (user, item) pairs are clicked."""
        chance = self.click_probability(users, items, at_s=at_s)
        drawn: npt.NDArray[np.bool_] = self._rng.random(len(items)) < chance
        return drawn

    def delays_ms(self, n: int) -> npt.NDArray[np.int64]:
        """How long after the impression each of n clicks comes: mostly at once, one in 50 late."""
        prompt = self._rng.exponential(200.0, n)
        late = self._rng.uniform(4_000, 9_000, n)
        return np.where(self._rng.random(n) < 0.02, late, prompt).astype(np.int64)

    def repeats(self, n: int) -> npt.NDArray[np.bool_]:
        """Which of n events the network delivers twice: one in 100."""
        drawn: npt.NDArray[np.bool_] = self._rng.random(n) < 0.01
        return drawn

    def dwell_seconds(self, n: int) -> npt.NDArray[np.float64]:
        """Reading time after each of n clicks."""
        return np.round(self._rng.exponential(8.0, n), 2)
