"""The window of a server follows what the server does."""

from sglang.batch.run.remote.window import HOLD, ROUND, START, Window


def answer_round(window: Window, clock: list[float], rate: float) -> None:
    """One window's worth of answers at so many tokens per second, and one more that begins the round."""
    for _ in range(max(ROUND, window.limit) + 1):
        clock[0] += 1 / rate
        window.answered(1, now=clock[0], full=True)


def test_a_window_doubles_while_the_rate_follows_it() -> None:
    window, clock, limits = Window.adapting(100), [0.0], []
    while window.limit < 100:
        answer_round(window, clock, rate=window.limit)
        limits.append(window.limit)
    # Of the rounds at one width the first is not measured.
    assert limits == [START, 2 * START, 2 * START, 4 * START, 4 * START, 100]
    assert window.returns == 0


def test_a_window_that_brings_nothing_goes_back_and_is_tried_again_later() -> None:
    window, clock = Window.adapting(512), [0.0]
    while not window.returns:
        answer_round(window, clock, rate=min(window.limit, 40))
    assert window.limit == 64  # which was a quarter faster than 32; 128 were no faster
    for _ in range(HOLD):
        answer_round(window, clock, rate=40)
        assert window.limit == 64
    while window.limit == 64:
        answer_round(window, clock, rate=40)
    assert window.limit == 64 + 512 // 32


def test_a_refusal_halves_once_for_all_that_were_under_way() -> None:
    window = Window.whole(64)
    epoch = window.epoch
    assert [window.refused(epoch) for _ in range(5)] == [True, False, False, False, False]
    assert window.limit == 32
    window.refused(window.epoch)
    assert window.limit == 16


def test_after_a_refusal_growth_is_by_steps() -> None:
    window, clock, limits = Window.whole(320), [0.0], set()
    window.refused(window.epoch)
    for _ in range(6):
        answer_round(window, clock, rate=window.limit)
        limits.add(window.limit)
    assert sorted(limits) == [160, 170, 180, 190]


def test_a_window_never_closes() -> None:
    window = Window.adapting(512)
    for _ in range(20):
        window.refused(window.epoch)
    assert window.limit == 1


def test_a_window_that_is_not_full_does_not_grow() -> None:
    window = Window.adapting(512)
    for i in range(1000):
        window.answered(5, now=float(i), full=False)
    assert window.limit == START


def test_a_limit_below_the_start_is_kept() -> None:
    window, clock = Window.adapting(3), [0.0]
    for _ in range(10):
        answer_round(window, clock, rate=window.limit)
    assert window.limit == 3
