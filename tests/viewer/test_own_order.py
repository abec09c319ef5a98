"""Orders of people's own, and turns at the model."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field

from data_engine.dataset.commits import Totals
from data_engine.viewer.own_order import OwnOrder, as_stored
from data_engine.viewer.turns import Turns


@dataclass
class Slice:
    """What an order asks of a commit record."""

    file: str
    images: int
    totals: Totals = field(init=False)

    def __post_init__(self) -> None:
        self.totals = Totals(images=self.images)


SLICES = [Slice(f"_commits/{number}.json", 50) for number in range(40)]


def test_an_order_has_each_image_once_from_anywhere() -> None:
    order = OwnOrder(SLICES, "Ada")
    everything = list(order.after(None))
    assert sorted(everything) == list(range(2000))
    blocks = [(position // 50, position % 50 // 16) for position in everything]
    assert sum(one != other for one, other in itertools.pairwise(blocks)) == 40 * 4 - 1  # neighbours
    for place in (0, 7, 1000, 1999):
        at = everything.index(place)
        assert list(order.after(place)) == everything[at + 1 :] + everything[: at + 1]
    assert list(as_stored(5, None)) == [0, 1, 2, 3, 4]
    assert list(as_stored(5, 2)) == [3, 4, 0, 1, 2]
    assert list(OwnOrder([], "Ada").after(None)) == []


def test_ten_people_seldom_meet() -> None:
    orders = {who: OwnOrder(SLICES, who).after(None) for who in map(str, range(10))}
    done: set[int] = set()
    met = 0
    while len(done) < 1800:
        given = [next(each for each in order if each not in done) for order in orders.values()]  # at the same moment
        met += len(given) - len(set(given))
        done.update(given)
    assert met < 90  # of 1800; all as stored, it would be nine of ten


def test_an_order_stays_while_the_dataset_grows() -> None:
    before = list(OwnOrder(SLICES[1:], "Ada").after(None))
    after = [position - 50 for position in OwnOrder(SLICES, "Ada").after(None) if position >= 50]
    assert before == after


def test_who_leafs_through_images_waits_for_the_last_ones_alone() -> None:
    turns, came = Turns(), []
    begun, go_on = threading.Event(), threading.Event()

    def wish(image: int, who: str = "Ada") -> None:
        with turns.turn(who, image) as comes:
            if comes:
                begun.set()
                go_on.wait(10)
                came.append(image)

    threads = [threading.Thread(target=wish, args=(0,))]
    threads[0].start()
    assert begun.wait(10)
    for image in range(1, 10):
        threads.append(threading.Thread(target=wish, args=(image,)))
        threads[-1].start()
        while image not in turns._wishes["Ada"]:
            time.sleep(0.001)
    for thread in threads[1:-2]:
        thread.join(10)  # though the first is not done
        assert not thread.is_alive()
    assert came == []
    go_on.set()
    wish(7, "Bob")
    for thread in threads:
        thread.join(10)
    assert came[0] == 0
    assert sorted(came) == [0, 7, 8, 9]
