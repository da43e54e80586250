"""The dense nets over pooled rows."""

from trainer.models.net import DeepFM, Logistic, Net, build_net

__all__ = ["DeepFM", "Logistic", "Net", "build_net"]
