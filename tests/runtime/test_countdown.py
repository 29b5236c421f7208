"""The time left, on a clock that the test sets."""

from tea_jax.runtime import countdown


def test_time_left_is_that_of_what_was_done_here(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(countdown.time, "monotonic", lambda: now[0])
  clock = countdown.Countdown(done=10)
  assert clock.left(10, 50) == "? left"
  now[0] = 50.0  # ten steps of five seconds
  assert clock(20, 50) == "[########------------] 2:30 left"
  assert clock.left(50, 50) == "0:00 left"
  assert clock.left(20, 2020) == "2:46:40 left"
