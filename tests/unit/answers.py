"""What several services answer, in tests of commands that ask them."""

from typing import Any


class Answers:
    """Of each service, one answer after another; the last one again and again."""

    def __init__(self) -> None:
        self._answers: dict[str, list[Any]] = {}

    def say(self, place: str, *answers: Any) -> None:
        """From now on; an exception is raised."""
        self._answers[place] = list(answers)

    def next(self, place: str) -> Any:
        """What it answers now."""
        answers = self._answers[place]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer
