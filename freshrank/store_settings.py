"""What `freshrank.yaml` says of the embedding tables: their memory and how their rows move.

`freshrank.settings` exports these names; what concerns one table stands with its feature.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from freshrank.units import Bytes, HalfLife, Part


class InitSettings(Part):
    """New rows start uniform in (-scale, scale); the first-order weight starts at 0."""

    scale: Annotated[float, Field(ge=0, le=1)] = 0.01


class StoreSettings(Part):
    """The trainer's embedding tables."""

    initial_rows: Annotated[int, Field(ge=1)] = 100_000
    init: InitSettings = InitSettings()
    # Of all tables together, growth included; a table that fills up first admits less, then evicts
    # what was seen least. None: no limit.
    max_bytes: Bytes | None = None
    threads: Annotated[int, Field(ge=1, le=64)] = 1  # that share a batch; results are the same


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
# What only some optimizers have; another one that ignored it would do what nobody asked for.
_KINDS_WITH: Final = {
    "l1": ("ftrl",),
    "beta": ("ftrl",),
    "beta1": ("adam",),
    "beta2": ("adam",),
    "eps": ("adagrad", "rowwise_adagrad", "adam"),
    "initial_accumulator": ("adagrad", "rowwise_adagrad", "ftrl"),
    "weight_decay": ("sgd", "adagrad", "rowwise_adagrad", "adam"),
    "accumulator_half_life": ("adagrad", "rowwise_adagrad"),
}


class RowOptimizer(Part):
    """How embedding rows move (embedding_store/FORMAT.md, Rows)."""

    kind: Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"] = "adagrad"
    lr: Positive = 0.05
    l1: NotNegative = 0.0
    l2: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    eps: Positive = 1e-8
    beta: Positive = 1.0
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    # Of Adagrad: the divisor of a row's first step is its square root. 0 makes that step lr * sign.
    initial_accumulator: NotNegative = 0.1
    # Event time in which what was gathered above the start halves. None: rows slow down for ever.
    accumulator_half_life: HalfLife | None = None
    # Limits of an id's gradient in a batch; each value's holds before the norm's.
    clip_norm: Positive | None = None
    clip_value: Positive | None = None

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> Self:
        for name, kinds in _KINDS_WITH.items():
            is_set = getattr(self, name) != type(self).model_fields[name].default
            if is_set and self.kind not in kinds:
                raise ValueError(f"{name} is of {', '.join(kinds)}; kind is {self.kind}")
        if self.lr * self.weight_decay > 1:
            raise ValueError(
                f"weight_decay times lr is the share of a weight that a step takes away: at most "
                f"1, got {self.weight_decay} x {self.lr}"
            )
        return self


class SparseOptimizer(RowOptimizer):
    """The optimizer of embedding rows, applied by the store; one apart for first-order weights."""

    first_order: RowOptimizer | None = None
