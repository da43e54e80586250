"""One rank request, from values to an ordered answer and its impression. No HTTP here."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from freshrank.clock import Clock
from freshrank.errors import DataError, TransportError
from freshrank.features import FeatureEncoder, RequestValues
from freshrank.messages import Impression
from freshrank.settings import Settings
from freshrank.transport.base import IMPRESSIONS, EventLog
from service.bodies import (
    Candidate,
    Freshness,
    Missing,
    ModelName,
    RankedItem,
    RankRequest,
    RankResponse,
)
from service.health import Health
from service.impressions import records_of
from service.model import Current, Model
from service.patience import GLANCE_S, Patience
from service.problems import FieldError, ProblemError, validation
from service.receipts import Receipt, Receipts
from service.replica import Replica
from service.request_ids import new_request_id
from service.request_values import MODEL_NAME, RequestReader
from service.scorer import Scorer, Scores

__all__ = ["Candidate", "RankRequest", "RankResponse", "Ranked", "Ranker"]

logger = logging.getLogger(__name__)

FIRST_SEEN_MAX: Final = 16
# Kafka acknowledges in 5 ms; an answer waits this much longer only where a broker hangs.
IMPRESSION_WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer and where its time went, in seconds."""

    response: RankResponse
    lookup_s: float
    forward_s: float


class Ranker:
    """Answers rank requests. Safe for threads."""

    def __init__(
        self,
        settings: Settings,
        encoder: FeatureEncoder,
        *,
        reader: RequestReader,
        replica: Replica,
        receipts: Receipts,
        health: Health,
        log: EventLog,
        clock: Clock,
    ) -> None:
        self._encoder = encoder
        self._reader = reader
        self._replica = replica
        self._receipts = receipts
        self._health = health
        self._log = log
        self._clock = clock
        self._scorer = Scorer(settings, encoder)
        self._patience = Patience(
            "impressions",
            n_max=settings.limits.in_flight,
            wait_s=IMPRESSION_WAIT_S,
            ill_wait_s=GLANCE_S,
        )
        self._tasks = [task.name for task in settings.tasks]
        self._first_seen: dict[str, dict[str, None]] = {"user": {}, "item": {}}

    def rank(self, request: RankRequest) -> RankResponse:
        """Order the candidates and log what was shown.

        Raises:
            ProblemError: the request is wrong (422), no base is loaded (503), or nothing was scored
                within its deadline (504).
        """
        return self.rank_timed(request).response

    def rank_timed(self, request: RankRequest) -> Ranked:
        """`rank`, and where the time went."""
        start_s = time.perf_counter()
        model = self._replica.model
        if model is None:
            raise ProblemError(
                "model-not-ready",
                "no base is loaded yet: the trainer publishes one when it starts",
                headers={"Retry-After": "1"},
            )
        is_late = self._deadline(request)
        now_ms = self._clock.now_ms()
        request_id = request.request_id or new_request_id(self._clock)
        after = self._after(request)
        values = self._reader.read(request, before_ms=now_ms)
        self._see(values)
        scores, order = self._scored(model, values, request, is_late)
        current = scores.current if scores else model.current
        degraded = self._health.degraded(current)
        items = self._items(values, scores, order)
        if scores and scores.n_scored < len(values.items):
            degraded.append("deadline")
        if scores and request.log_impression:
            impression = self._impression(request_id, now_ms, values, scores, order)
            is_ill = "broker" in degraded
            if not self._append(impression, is_ill=is_ill) and not is_ill:
                degraded.append("broker")
            logger.debug("request=ranked request_id=%s degraded=%s", request_id, degraded)
        response = RankResponse(
            request_id=request_id,
            items=items,
            model=ModelName(MODEL_NAME, current.info.version),
            freshness=self._freshness(current, after, now_ms),
            missing=Missing(
                user=scores is not None and not scores.is_user_known,
                items=[item.item for item in items if not item.known],
                features=self._reader.missing_features(values) if scores else [],
            ),
            degraded=degraded,
            took_ms=round((time.perf_counter() - start_s) * 1_000, 3),
        )
        timings = (scores.lookup_s, scores.forward_s) if scores else (0.0, 0.0)
        return Ranked(response, *timings)

    def first_seen(self, scope: str) -> list[str]:
        """Some users or items that were ranked, always the same: for the page's lists."""
        return list(self._first_seen[scope])

    def _see(self, values: RequestValues) -> None:
        for scope, ids in (("user", [values.user]), ("item", values.items)):
            seen = self._first_seen[scope]
            for identity in ids[: max(FIRST_SEEN_MAX - len(seen), 0)]:
                seen[str(identity)] = None

    def _deadline(self, request: RankRequest) -> Callable[[], bool] | None:
        if request.deadline_ms is None:
            return None
        end_s = self._clock.monotonic_s() + request.deadline_ms / 1_000
        return lambda: self._clock.monotonic_s() >= end_s

    def _after(self, request: RankRequest) -> Receipt | None:
        if request.after is None:
            return None
        try:
            return self._receipts.read(request.after)
        except DataError as error:
            raise validation([FieldError("#/after", str(error))]) from error

    def _scored(
        self,
        model: Model,
        values: RequestValues,
        request: RankRequest,
        is_late: Callable[[], bool] | None,
    ) -> tuple[Scores | None, list[int]]:
        """Scores of all items, and the rows of those returned, best first."""
        if not values.items:
            return None, []
        try:
            encoded = self._encoder.encode([values])
        except DataError as error:  # explicit values were checked, so feature state is to blame
            raise validation([FieldError("#", str(error))]) from error
        scores = self._scorer.score(model, encoded, is_late)
        if scores.n_scored == 0:
            raise ProblemError("deadline", f"nothing was scored within {request.deadline_ms} ms")
        first = scores.predictions[:, 0]
        # What has no score stands last; ties go by item id: equal requests get equal answers.
        ranked = np.where(np.isfinite(first), -first, np.inf).tolist()
        best_first = sorted(zip(ranked, values.items, range(len(ranked)), strict=True))
        return scores, [row for _, _, row in best_first[: request.top_k]]

    def _items(
        self, values: RequestValues, scores: Scores | None, order: list[int]
    ) -> list[RankedItem]:
        if scores is None:
            return []
        predictions = scores.predictions[order].tolist()
        known = scores.is_known[order].tolist()
        is_scored = [all(map(math.isfinite, row)) for row in predictions]
        return [
            RankedItem(
                item=values.items[row],
                rank=rank,
                score=predicted[0] if scored else None,
                task_scores=dict(zip(self._tasks, predicted, strict=True)) if scored else {},
                known=is_known,
            )
            for rank, (row, predicted, scored, is_known) in enumerate(
                zip(order, predictions, is_scored, known, strict=True), start=1
            )
        ]

    def _impression(
        self,
        request_id: str,
        now_ms: int,
        values: RequestValues,
        scores: Scores,
        order: list[int],
    ) -> Impression:
        """The returned items with exactly the values that scored them."""
        predictions = scores.predictions[order].T.tolist()
        return Impression(
            event_id=new_request_id(self._clock),
            ts_ms=now_ms,
            received_at_ms=now_ms,
            request_id=request_id,
            user=values.user,
            items=[values.items[row] for row in order],
            shared=dict(values.shared),
            columns={
                name: [column[row] for row in order] for name, column in values.columns.items()
            },
            served=dict(zip(self._tasks, predictions, strict=True)),
            positions=list(range(1, len(order) + 1)),
            version=scores.current.info.version,
        )

    def _append(self, impression: Impression, *, is_ill: bool) -> bool:
        """False when the log cannot take it, or not soon: the answer goes out all the same."""
        try:
            records = records_of(impression)
        except DataError as error:
            raise validation([FieldError("#/candidates", str(error))]) from error
        try:
            self._patience.ask(lambda: self._log.append(IMPRESSIONS, records), is_ill=is_ill)
        except TransportError:
            return False
        return True

    def _freshness(self, current: Current, after: Receipt | None, now_ms: int) -> Freshness:
        info = current.info

        def age_s(at_ms: int) -> float:
            return max(now_ms - at_ms, 0) / 1_000

        return Freshness(
            sparse_age_seconds=age_s(info.published_at_ms),
            dense_age_seconds=age_s(current.dense_published_at_ms),
            newest_event_age_seconds=age_s(info.watermark_ms) if info.watermark_ms else None,
            sparse_seq=info.seq,
            after_satisfied=(
                None if after is None else self._receipts.is_servable(after, info.offsets)
            ),
        )
