"""The run corrects the plan's time after its first steps, once, and only where it was wrong."""

from __future__ import annotations

from hfadapt.progress import FIRST_STEPS, Corrected


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []
        self.validations: list[float] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def step(self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        self.steps.append(step)

    def validation(self, step: int, loss: float) -> None:
        self.validations.append(loss)


def train(predicted: float | None, seconds_each: float, first: int = 1, total: int = 40) -> Heard:
    heard = Heard()
    progress = Corrected(heard, predicted)
    for step in range(first, total + 1):
        progress.step(step, total, 1.0, 100.0, (total - step) * seconds_each)
    progress.validation(total, 0.5)
    assert heard.steps == list(range(first, total + 1))
    assert heard.validations == [0.5]
    return heard


def test_a_wrong_guess_is_corrected_once() -> None:
    heard = train(predicted=40.0, seconds_each=3.0)
    assert len(heard.lines) == 1
    assert "2 min 00 s" in heard.lines[0]
    assert "40 s" in heard.lines[0]


def test_a_good_guess_or_none_is_left_alone() -> None:
    assert not train(predicted=40.0, seconds_each=1.1).lines
    assert not train(predicted=None, seconds_each=3.0).lines
    assert not train(predicted=1.0, seconds_each=3.0, total=FIRST_STEPS - 1).lines


def test_a_resumed_run_is_corrected_from_where_it_goes_on() -> None:
    heard = train(predicted=40.0, seconds_each=3.0, first=20)
    assert len(heard.lines) == 1
