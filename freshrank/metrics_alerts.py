"""When an operator is told, and of what: every alert has its page in `docs/runbooks`.

    python -m freshrank.metrics_alerts --runbooks https://git.example.org/docs/runbooks

prints `alerts.yml` with links to where you have them.
"""

import argparse
import sys
from typing import Final

from freshrank.metrics_rules import RUNBOOKS, Alert, alerting, as_yaml, burns

ALERTS: Final = (
    *burns(),
    # Processes.
    Alert(
        "ProcessDown",
        'up{job=~"freshrank-.+"} == 0',
        "1m",
        "page",
        "{{ $labels.instance }} of {{ $labels.job }} does not answer.",
    ),
    Alert(
        "NoTrainerLearns",
        "(sum(freshrank_trainer_leading) or vector(0)) != 1",
        "1m",
        "page",
        "{{ $value }} trainers learn, not one.",
    ),
    Alert(
        "StepsFail",
        "sum by (job, worker) (increase(freshrank_worker_retries_total[5m])) > 0",
        "5m",
        "ticket",
        "{{ $labels.worker }} tries again and again: disk or log fails.",
    ),
    Alert(
        "CheckpointsFail",
        'sum(increase(freshrank_checkpoints_total{result=~"failed|damaged"}[15m])) > 0'
        " or time() - max(freshrank_checkpoint_last_success_timestamp_seconds) > 900s"
        " and on() sum(rate(freshrank_trainer_examples_total[15m])) > 0",
        "5m",
        "ticket",
        "What was learned is not saved, or was damaged where it lay.",
    ),
    # From the stream to the parameters.
    Alert(
        "LagGrows",
        "min_over_time(freshrank:consumer_lag_records:sum[10m]) > 1000"
        " and delta(freshrank:consumer_lag_records:sum[10m]) > 0",
        "5m",
        "page",
        "{{ $labels.topic }} are written faster than they are read.",
    ),
    Alert(
        "Unmatched",
        'sum(rate(freshrank_joiner_examples_total{outcome="unmatched"}[30m]))'
        ' / sum(rate(freshrank_joiner_examples_total{outcome=~"matched|unmatched"}[30m])) > 0.2',
        "10m",
        "ticket",
        "{{ $value | humanizePercentage }} of actions name no impression that is known.",
    ),
    Alert(
        "DeadLetters",
        "sum by (topic) (increase(freshrank_dead_letters_total[1h])) > 0",
        "",
        "ticket",
        "Some {{ $labels.topic }} cannot be used.",
    ),
    Alert(
        "EventsRejected",
        "sum(rate(freshrank_events_rejected_total[10m]))"
        " / sum(rate(freshrank_events_received_total[10m])) > 0.1",
        "5m",
        "ticket",
        "{{ $value | humanizePercentage }} of the events sent are refused.",
    ),
    Alert(
        "NoTraffic",
        "sum(increase(freshrank_events_received_total[15m])) == 0"
        " and sum(increase(freshrank_events_received_total[6h])) > 0",
        "",
        "ticket",
        "No event has come for 15 minutes, though there were some within six hours.",
    ),
    # From the parameters to the answers.
    Alert(
        "VersionHeldBack",
        "max(freshrank_sync_held_back) == 1",
        "5m",
        "page",
        "The trainer holds its parameters back: they forget, explode or are not finite.",
    ),
    Alert(
        "PublicationsFail",
        'sum(increase(freshrank_trainer_publications_total{result="failed"}[10m])) > 0',
        "5m",
        "ticket",
        "The parameter channel does not take what the trainer publishes.",
    ),
    Alert(
        "SyncStale",
        "freshrank:sync_age_seconds:max > 120s and on()"
        " (sum(rate(freshrank_trainer_examples_total[5m])) > 0"
        " or max(freshrank_trainer_sync_seq) > min(freshrank_serving_sync_seq))",
        "1m",
        "page",
        "Parameters served are {{ $value | humanizeDuration }} old, and there are newer ones.",
    ),
    Alert(
        "EpochsDiffer",
        "max(freshrank_serving_sync_epoch) != min(freshrank_serving_sync_epoch)",
        "2m",
        "ticket",
        "Services answer from parameters of different trainers.",
    ),
    Alert(
        "FramesRefused",
        'sum by (instance, result) (rate(freshrank_sync_batches_total{result!="applied"}[5m])) > 0',
        "5m",
        "ticket",
        "{{ $labels.instance }} cannot apply parameter frames: {{ $labels.result }}.",
    ),
    Alert(
        "FeatureStateAway",
        "min(freshrank_serving_feature_state_up) == 0",
        "1m",
        "page",
        "Requests are ranked without what users did lately.",
    ),
    Alert(
        "RequestsRejected",
        "sum by (reason) (rate(freshrank_http_rejected_total[5m])) > 1",
        "5m",
        "ticket",
        "Requests are refused before they are read: {{ $labels.reason }}.",
    ),
    # What is learned, and room for it.
    Alert(
        "TrainerPaused",
        "max(freshrank_trainer_paused) == 1",
        "1h",
        "ticket",
        "Learning was paused an hour ago and not resumed.",
    ),
    Alert(
        "Calibration",
        'freshrank_trainer_calibration_ratio{source="served"} > 2'
        ' or freshrank_trainer_calibration_ratio{source="served"} < 0.5',
        "30m",
        "ticket",
        "Predictions of {{ $labels.task }} are {{ $value }} times what happens.",
    ),
    Alert(
        "QualityDrops",
        'freshrank_trainer_progressive_auc{source="served"}'
        ' < avg_over_time(freshrank_trainer_progressive_auc{source="served"}[1d]) - 0.05',
        "30m",
        "ticket",
        "AUC of {{ $labels.task }} is {{ $value }}, far below that of the last day.",
    ),
    Alert(
        "BudgetFull",
        'sum by (slot) (rate(freshrank_store_evictions_total{reason="capacity"}[15m])) > 0',
        "15m",
        "ticket",
        "Table {{ $labels.slot }} has no room: rows that are in use leave for new ones.",
    ),
)


def main() -> None:
    """Print the rules."""
    parser = argparse.ArgumentParser(prog="python -m freshrank.metrics_alerts")
    parser.add_argument("--runbooks", default=RUNBOOKS, metavar="URL", help="where the pages are")
    base = parser.parse_args().runbooks.rstrip("/")
    sys.stdout.write(as_yaml(alerting(ALERTS, runbooks=base)))


if __name__ == "__main__":
    main()
