"""How rows move: the optimizers' parameters; formulas and state are in FORMAT.md."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from embedding_store import _native

Kind = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"]


@dataclass(frozen=True)
class Optimizer:
    """How one slice of a row moves.

    A slice is the whole row or, where a table has an optimizer for the first-order column, the
    vector and that column apart. What a kind does not use it ignores, except where said.

    Args:
        kind: `rowwise_adagrad` is Adagrad with one accumulator for the vector; `ftrl` is
            FTRL-proximal (McMahan et al. 2013).
        lr: Learning rate; in ftrl the paper's alpha.
        l1: Of ftrl alone: pushes weights to exactly 0.
        l2: Adds l2 * w to the gradient; in ftrl the paper's lambda 2.
        weight_decay: Decoupled: a step also takes lr * weight_decay of w away. Not in ftrl.
        eps: Keeps the divisors of the Adagrads and of adam above 0.
        beta: Of ftrl: the paper's beta, which damps the first steps.
        beta1: Of adam: decay of the mean gradient per step of the row.
        beta2: Of adam: decay of the mean square.
        initial_accumulator: Where squared gradients of the Adagrads and ftrl start.
        accumulator_half_life_s: Of the Adagrads alone: seconds of event time in which what was
            gathered above the start halves, so that an endless stream freezes no row. 0: never.
        clip_norm: Limit of the slice's gradient, summed by id, in Euclidean norm. 0: none.
        clip_value: Limit of each value of it, applied before the norm's. 0: none.

    Raises:
        StoreError: a value out of range, named.
    """

    kind: Kind
    _: KW_ONLY
    lr: float
    l1: float = 0.0
    l2: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-8
    beta: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    initial_accumulator: float = 0.1
    accumulator_half_life_s: int = 0
    clip_norm: float = 0.0
    clip_value: float = 0.0

    def __post_init__(self) -> None:
        _native.check_optimizer(self)
