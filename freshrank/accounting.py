"""The identities that totals of joiner and trainer satisfy at any moment (docs/semantics.md).

    received           = accepted + rejected                        (events, at the service)
    accepted actions   = matched + duplicate + unmatched + late + dead letter + pending
    impression items   = positive + negative + sampled out + pending   (per task with negatives)
                       = positive + unlabelled                         (per task without)
    examples written   = learned + refused + forgotten - those of other logs' archives
                                                                           (once caught up)

Rows of negative weight are no examples: a reversal pair is one, its row of weight +1.
"""

from collections.abc import Mapping

from freshrank.settings import Settings

_ACTIONS = ("matched", "duplicate", "unmatched", "late", "dead_letter", "pending")
_ITEMS = ("positive", "negative", "sampled_out", "pending", "unlabelled")
# Totals that never fall. Items by status do: a late click takes its item out of `negative`.
GROWING = (*_ACTIONS[:-1], "examples_written", "reversals")


def problems(totals: Mapping[str, int], settings: Settings) -> list[str]:
    """Every identity that does not hold, with its figures; empty when all is accounted for."""
    found = []

    def check(whole: str, expected: int, parts: Mapping[str, int]) -> None:
        if expected != sum(parts.values()):
            listed = " + ".join(f"{name} {n}" for name, n in parts.items())
            found.append(f"{whole} {expected} != {listed}")

    def given(*names: str) -> dict[str, int]:
        return {name: totals.get(name, 0) for name in names}

    check("received", totals.get("received", 0), given("accepted", "rejected"))
    check("accepted_actions", totals.get("accepted_actions", 0), given(*_ACTIONS))
    for task in settings.tasks:
        items = totals.get("impression_items", 0)
        check(
            f"impression_items ({task.name})", items, given(*(f"{task.name}.{i}" for i in _ITEMS))
        )
    dealt_with = given("examples_learned", "examples_dead_letter", "examples_forgotten")
    from_elsewhere = {"-history_examples": -totals.get("history_examples", 0)}
    check("examples_written", totals.get("examples_written", 0), dealt_with | from_elsewhere)
    return found


def n_open(totals: Mapping[str, int], settings: Settings) -> int:
    """Actions parked and items whose window is open: what time will still decide."""
    open_items = sum(totals.get(f"{task.name}.pending", 0) for task in settings.tasks)
    return totals.get("pending", 0) + open_items
