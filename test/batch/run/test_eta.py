"""The end comes from the model's proportions and the measured speed, as a range while that is unsure."""

import pytest

from sglang.batch.run.eta import Eta, ModelledEta, PoolState, duration, rate_eta


def state(
    done: float, left: float, *, high: float = 0.0, estimated: float = 0.0, answers: int = 0
) -> PoolState:
    return PoolState(done, left, max(high, left), estimated, answers)


def predict(*seen: tuple[float, PoolState], now: float | None = None, beyond: int = 0) -> Eta | None:
    modelled = ModelledEta()
    for seconds, pool in seen:
        modelled.observe(seconds, pool)
    return modelled.eta(seen[-1][0] if now is None else now, submitted=100, beyond=beyond)


def test_a_model_that_is_twice_too_fast_is_corrected() -> None:
    eta = predict((0.0, state(0, 100)), (50.0, state(25, 75)))
    assert eta is not None
    assert eta.seconds == pytest.approx(150)
    assert eta.low < 150 < eta.high
    assert eta.sure


def test_time_before_the_first_work_is_no_part_of_the_speed() -> None:
    """The pool is complete only after 1,000 seconds of tokenizing."""
    eta = predict((0.0, state(0, 100)), (1000.0, state(0, 100)), (1050.0, state(50, 50)))
    assert eta is not None
    assert eta.seconds == pytest.approx(50)


def test_time_since_the_last_look_is_taken_off() -> None:
    seen = (0.0, state(0, 100)), (50.0, state(50, 50))
    later, overdue = predict(*seen, now=60.0), predict(*seen, now=500.0)
    assert later is not None
    assert overdue is not None
    assert later.seconds == pytest.approx(40)
    assert overdue.seconds == 0


def test_lines_beyond_the_pool_take_as_long_as_those_in_it() -> None:
    """100 lines of the pool take 100 seconds, so 200 more take 200."""
    eta = predict((0.0, state(0, 100)), (50.0, state(50, 50)), beyond=200)
    assert eta is not None
    assert eta.seconds == pytest.approx(50 + 200)


def test_another_engine_is_measured_anew() -> None:
    seen = (0.0, state(0, 100)), (90.0, state(30, 70)), (100.0, state(0, 70)), (120.0, state(20, 50))
    eta = predict(*seen)
    assert eta is not None
    assert eta.seconds == pytest.approx(50)


def test_nothing_is_predicted_before_there_is_something_to_go_by() -> None:
    assert ModelledEta().eta(5.0, submitted=100, beyond=0) is None
    assert predict((0.0, state(0, 100))) is None
    assert predict((0.0, state(0, 100)), (5.0, state(5, 95, estimated=1.0))) is None
    assert rate_eta(5.0, 0, 10) is None


def test_a_range_narrows_as_lengths_are_learned() -> None:
    spans = []
    for answers in (1, 10, 1000):
        eta = predict((0.0, state(0, 100)), (50.0, state(50, 50, estimated=1.0, answers=answers)))
        assert eta is not None
        spans.append((eta.high - eta.low, eta.sure))
    assert [sure for _, sure in spans] == [False, False, True]
    assert spans == sorted(spans, reverse=True)


def test_a_run_that_one_long_answer_may_hold_up_is_told_as_a_range() -> None:
    eta = predict((0.0, state(0, 100)), (50.0, state(50, 50, high=200, estimated=1.0, answers=1000)))
    assert eta is not None
    assert eta.seconds == pytest.approx(50)
    assert eta.high == pytest.approx(200)
    assert not eta.sure


def test_a_rate_goes_on_as_it_was() -> None:
    eta = rate_eta(30.0, 10, 20)
    assert eta is not None
    assert eta.seconds == 60


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (720, 1200, "12 to 20 min"),
        (50, 200, "50 s to 3 min"),
        (3000, 4000, "50 min to 1 h 07 min"),
        (4000, 8000, "1 h 07 min to 2 h 13 min"),
        (700, 710, "~12 min"),
    ],
)
def test_a_range_is_as_short_as_it_can_be(low: float, high: float, text: str) -> None:
    assert Eta((low + high) / 2, low, high, sure=False).text() == text


def test_a_minute_is_never_sixty_seconds_past_an_hour() -> None:
    assert duration(3599) == "1 h 00 min"
