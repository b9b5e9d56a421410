from __future__ import annotations

from pipecat_personaplex.asgi.token_bucket import TokenBucket


def test_tokens_refill_up_to_the_burst() -> None:
    bucket = TokenBucket(100, burst=100, now=5)
    assert [bucket.take(5) for _ in range(101)] == [True] * 100 + [False]
    assert [bucket.take(5.125) for _ in range(13)] == [True] * 12 + [False]
    assert [bucket.take(500) for _ in range(101)] == [True] * 100 + [False]


def test_a_take_that_fails_takes_nothing() -> None:
    bucket = TokenBucket(2, burst=4, now=0)
    assert bucket.take(0, 3)
    assert not bucket.take(0, 1.5)
    assert bucket.take(0, 1)
    assert not bucket.take(0.5, 1.25)
    assert bucket.take(0.5, 1)
