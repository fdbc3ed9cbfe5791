"""Who is over its share of what is inside the engines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.control_plane.service_shares import RAMP, ServiceShares


def shares(**inside: float) -> ServiceShares:
    made = ServiceShares(excess=2.0, least=0.25)
    for tenant, cost in inside.items():
        made.enter(tenant, 1.0, cost)
    return made


def test_nobody_is_over_alone() -> None:
    made = shares(a=100.0)
    assert not made.is_over("a")
    assert not made.is_over("nobody")


def test_more_than_twice_its_share_and_a_quarter_of_all() -> None:
    light = {f"light{i}": 1.0 for i in range(9)}
    assert shares(noisy=4.0, **light).is_over("noisy")
    assert not shares(noisy=2.0, **light).is_over("noisy")  # 18 % of all
    assert not shares(noisy=4.0, **light).is_over("light0")


def test_by_how_much_rises_from_nothing_to_all() -> None:
    light = {f"light{i}": 1.0 for i in range(9)}
    limit = 9 * 0.25 / 0.75  # a quarter of all
    assert shares(noisy=limit * 0.99, **light).over("noisy") == 0.0
    little, more = (shares(noisy=limit * x, **light).over("noisy") for x in (1.02, 1.3))
    assert 0.0 < little < 0.05 < more < 1.0
    assert shares(noisy=9 * (0.25 + RAMP) / (0.75 - RAMP) + 0.01, **light).over("noisy") == 1.0
    assert shares(a=1.0).over("a") == 0.0


def test_of_two_tenants_one_is_over_with_three_quarters() -> None:
    assert not shares(a=2.9, b=1.0).is_over("a")
    assert shares(a=3.1, b=1.0).is_over("a")


def test_weights_count() -> None:
    made = ServiceShares(excess=2.0, least=0.25)
    made.enter("heavy", 8.0, 6.0)
    made.enter("light", 1.0, 1.0)
    assert not made.is_over("heavy")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(1e-6, 1e3)), max_size=60))
def test_what_has_left_counts_no_more(requests: list[tuple[str, float]]) -> None:
    made = ServiceShares(excess=2.0, least=0.25)
    for tenant, cost in requests:
        made.enter(tenant, 1.0, cost)
    for tenant, cost in reversed(requests):
        made.leave(tenant, cost)
    assert not any(made.is_over(tenant) for tenant in "abc")
    made.enter("a", 1.0, 3.0)
    made.enter("b", 1.0, 0.5)
    assert made.is_over("a")
    assert not made.is_over("b")
