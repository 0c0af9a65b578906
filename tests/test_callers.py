"""Places for each caller."""

from __future__ import annotations

import contextvars

import pytest

from sana_service.callers import CallerLimit, caller
from sana_service.contract.errors import Overloaded


def as_caller(name: bytes | None, work) -> object:
    """Do something in the context of a caller's request."""
    context = contextvars.copy_context()
    context.run(caller.set, name)
    return context.run(work)


def test_a_caller_has_so_many_places_and_gets_them_back():
    limit = CallerLimit(2)
    served: list[int] = []

    def nested(depth: int) -> None:
        with limit.place(lambda: 3.2):
            served.append(depth)
            if depth < 3:
                nested(depth + 1)

    with pytest.raises(Overloaded) as refused:
        as_caller(b"a", lambda: nested(1))
    assert served == [1, 2]
    assert refused.value.headers == {"retry-after": "4"}
    # the two were given back, by the error, too
    with pytest.raises(Overloaded):
        as_caller(b"a", lambda: nested(1))
    assert served == [1, 2, 1, 2]


def test_callers_do_not_take_each_others_places():
    limit = CallerLimit(1)
    seen: list[str] = []

    def first() -> None:
        with limit.place(lambda: 0.0):
            as_caller(b"b", second)

    def second() -> None:
        with limit.place(lambda: 0.0):
            seen.append("b")

    as_caller(b"a", first)
    assert seen == ["b"]


@pytest.mark.parametrize(("most", "name"), [(None, b"a"), (1, None)])
def test_without_a_limit_or_a_key_any_number_is_let_in(most: int | None, name: bytes | None):
    limit = CallerLimit(most)

    def nested(depth: int) -> int:
        with limit.place(lambda: 0.0):
            return nested(depth + 1) if depth < 50 else depth

    assert as_caller(name, lambda: nested(1)) == 50
