"""Whether the web is away or only a server: asked of those who answered before."""

from __future__ import annotations

import pytest

from data_engine.images import web_reach
from data_engine.images.settings import InputSettings
from data_engine.images.web_reach import WebReach


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> tuple[WebReach, list[float], set[str], list[str]]:
    """(it, the time, hosts that are up, addresses that were asked)."""
    now, up, asked = [0.0], {"a", "b"}, []

    def answers(address: str, _: InputSettings) -> bool:
        asked.append(address)
        return address.split("/")[2] in up

    monkeypatch.setattr(web_reach, "answers", answers)
    return WebReach(InputSettings(), lambda: now[0]), now, up, asked


def test_it_is_lost_when_nobody_answers_who_did(reach):
    web, now, up, asked = reach
    assert not web.is_lost()  # nobody ever has
    web.answered("http://a/1.jpg")
    web.answered("http://b/2.jpg")
    web.answered("http://a/3.jpg")
    assert not web.is_lost()
    assert asked == []  # somebody has just now
    now[0] += 5
    assert not web.is_lost()
    up.clear()
    assert web.is_lost()
    assert set(asked) == {"http://b/2.jpg", "http://a/3.jpg"}
    up.add("b")
    assert not web.is_lost()


def test_it_asks_a_few_however_many_have_answered(reach):
    web, now, up, asked = reach
    up.clear()
    for number in range(100):
        web.answered(f"http://host{number}/a.jpg")
    now[0] += 5
    assert web.is_lost()
    assert asked == [f"http://host{number}/a.jpg" for number in range(96, 100)]
