"""What the trainer must not publish: bounds that no healthy stream comes near."""

from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, model_validator

from freshrank.units import Part, Period


class GuardSettings(Part):
    """When a version is held back."""

    # Root mean square of what is published over that of the last publication, or over 1.
    norm_jump: Annotated[float, Field(gt=1)] = 10.0
    # Log loss over that of the predictions made before the same rows were learned: 0.5 is half as
    # much again.
    logloss_rise: Annotated[float, Field(gt=0)] = 0.5
    # Predicted over observed.
    calibration: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        default_factory=lambda: [0.5, 2.0]
    )
    # Fewer rows give no verdict on log loss and calibration.
    rows_min: Annotated[int, Field(ge=30, le=1_000)] = 300
    # After so long it is taken that the world has changed, not that the labels are wrong.
    hold: Period = timedelta(hours=1)

    @model_validator(mode="after")
    def _around_one(self) -> Self:
        low, high = self.calibration
        if not 0 <= low < 1 < high:
            raise ValueError(f"calibration is [below 1, above 1], not {self.calibration}")
        return self
