"""The settings object: what `freshrank.yaml` says, typed, frozen and complete.

Reading the file and pointing at mistakes is `freshrank.config`; this module only says what is
legal.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from freshrank.feature_settings import (
    Admission as Admission,
)
from freshrank.feature_settings import (
    BucketFeature as BucketFeature,
)
from freshrank.feature_settings import (
    CountFeature as CountFeature,
)
from freshrank.feature_settings import (
    CrossFeature as CrossFeature,
)
from freshrank.feature_settings import (
    DenseFeature as DenseFeature,
)
from freshrank.feature_settings import (
    Feature as Feature,
)
from freshrank.feature_settings import (
    IdFeature as IdFeature,
)
from freshrank.feature_settings import (
    IdListFeature as IdListFeature,
)
from freshrank.feature_settings import (
    LiveFeature as LiveFeature,
)
from freshrank.feature_settings import (
    RateFeature as RateFeature,
)
from freshrank.feature_settings import (
    RecentFeature as RecentFeature,
)
from freshrank.feature_settings import (
    SeenFeature as SeenFeature,
)
from freshrank.guard_settings import GuardSettings as GuardSettings
from freshrank.log_settings import LogSettings as LogSettings
from freshrank.logging_settings import LoggingSettings as LoggingSettings
from freshrank.metrics_settings import MetricsSettings as MetricsSettings
from freshrank.replay_settings import ReplaySettings
from freshrank.state_settings import StateSettings as StateSettings
from freshrank.store_settings import (
    InitSettings as InitSettings,
)
from freshrank.store_settings import (
    RowOptimizer as RowOptimizer,
)
from freshrank.store_settings import (
    SparseOptimizer as SparseOptimizer,
)
from freshrank.store_settings import (
    StoreSettings as StoreSettings,
)
from freshrank.sync_settings import SyncSettings as SyncSettings
from freshrank.units import Age, Bytes, Duration, FilePath, Name, Part, Period, Ratio

Width = Annotated[int, Field(ge=1, le=4_096)]


class ServiceSettings(Part):
    """Where the service listens and keeps its files."""

    name: Name = "freshrank"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    data_dir: FilePath = Path("data")


class DenseOptimizer(Part):
    """Adam on the dense net."""

    lr: Annotated[float, Field(gt=0)] = 1e-3


class OptimizerSettings(Part):
    """How parameters move."""

    sparse: SparseOptimizer = SparseOptimizer()
    dense: DenseOptimizer = DenseOptimizer()
    clip_norm: Annotated[float, Field(gt=0)] = 10.0


class ModelSettings(Part):
    """The net over the rows."""

    kind: Literal["deepfm", "logistic"] = "deepfm"
    hidden: list[Width] = Field(default_factory=lambda: [64, 32], max_length=8)


class NegativeSettings(Part):
    """Which rows become negatives, and the share of them kept (corrected in the loss)."""

    source: Annotated[Literal["shown"], Field(alias="from")] = "shown"
    sample_rate: Ratio = 1.0


class TaskSettings(Part):
    """Something to predict: the probability of an event, or its value."""

    name: Name
    event: Name
    loss: Literal["logloss", "huber"] = "logloss"
    weight: Annotated[float, Field(gt=0)] = 1.0
    negative: NegativeSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _absence_is_negative(cls, document: Any) -> Any:
        """A probability needs both sides: by default, shown and not done is a negative."""
        is_open = isinstance(document, dict) and "negative" not in document
        if is_open and document.get("loss", "logloss") == "logloss":
            return {**document, "negative": {"from": "shown"}}
        return document

    @model_validator(mode="after")
    def _negatives_need_logloss(self) -> Self:
        if self.loss == "huber" and self.negative and self.negative.sample_rate < 1.0:
            raise ValueError("sample_rate below 1 is corrected in log odds; huber has none")
        return self


class JoinSettings(Part):
    """When an example leaves the joiner (docs/semantics.md, the joiner)."""

    impressions: Literal["served", "reported"] = "served"
    window: Duration = timedelta(seconds=30)
    max_out_of_order: Duration = timedelta(seconds=2)
    allowed_lateness: Duration = timedelta(minutes=5)
    dedup_window: Duration = timedelta(hours=1)
    emit: Literal["positives_first", "at_once", "at_close"] = "positives_first"
    # Of what comes beyond it nothing is learned. None: no limit, as where one id stands for many.
    user_requests_per_hour: Annotated[int, Field(ge=1, le=3_600_000)] | None = None


class TrainerSettings(Part):
    """How the trainer cuts batches; `fixed` repeats bit for bit."""

    batching: Literal["adaptive", "fixed"] = "adaptive"
    batch_max: Annotated[int, Field(ge=1, le=65_536)] = 512
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1


class ArchiveSettings(Part):
    """Where the joiner keeps examples as Parquet by hour, and for how long."""

    dir: FilePath
    keep: Age | None = None  # None: for ever


class CheckpointSettings(Part):
    """How often the trainer saves itself, and how many are kept."""

    every: Period = timedelta(minutes=1)
    keep: Annotated[int, Field(ge=1, le=100)] = 3


class ServingSettings(Part):
    """How the service keeps rows, and when an answer calls itself stale."""

    # Of a served weight: 4, 2 or 1 bytes (embedding_store.ServingTable says how exact each is).
    dtype: Literal["float32", "float16", "int8"] = "float32"
    max_staleness: Duration = timedelta(minutes=5)
    # The newest of the log, ranked once more before the service says that it is ready.
    warmup_requests: Annotated[int, Field(ge=0, le=10_000)] = 200


class ApiKey(Part):
    """One key, kept as the SHA-256 of its text."""

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    sha256_file: FilePath | None = None
    scopes: Annotated[list[Literal["rank", "events", "read", "admin"]], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.sha256 is None) == (self.sha256_file is None):
            raise ValueError("give either sha256 or sha256_file")
        return self


class AuthSettings(Part):
    """API keys; none are needed on loopback."""

    keys: list[ApiKey] = Field(default_factory=list)


class LimitSettings(Part):
    """What one request may ask for."""

    candidates: Annotated[int, Field(ge=1, le=100_000)] = 1_000
    body: Bytes = 2 << 20
    in_flight: Annotated[int, Field(ge=1)] = 64
    events: Annotated[int, Field(ge=1, le=100_000)] = 1_000


class Settings(Part):
    """The whole configuration."""

    version: Literal[1] = 1
    service: ServiceSettings = ServiceSettings()
    salt: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    features: Annotated[list[Feature], Field(min_length=1, max_length=64)]
    store: StoreSettings = StoreSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    model: ModelSettings = ModelSettings()
    tasks: Annotated[list[TaskSettings], Field(min_length=1, max_length=8)]
    join: JoinSettings = JoinSettings()
    trainer: TrainerSettings = TrainerSettings()
    log: LogSettings = LogSettings()
    state: StateSettings = StateSettings()
    archive: ArchiveSettings | None = None
    sync: SyncSettings = SyncSettings()
    guard: GuardSettings = GuardSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    serving: ServingSettings = ServingSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    metrics: MetricsSettings = MetricsSettings()
    logging: LoggingSettings = LoggingSettings()
    replay: ReplaySettings = ReplaySettings()
