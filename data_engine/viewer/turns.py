"""Who is next at something that only one can have at a time."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Condition

_WISHES = 2  # of a person that wait: the image that is looked at, and the next one


class Turns:
    """One at a time. Of each person only the last wishes wait: who leafs through images holds up nobody."""

    def __init__(self) -> None:
        self._wishes: defaultdict[str, deque[Hashable]] = defaultdict(partial(deque, maxlen=_WISHES))
        self._changed = Condition()
        self._taken = False

    @contextmanager
    def turn(self, who: str, wish: Hashable) -> Iterator[bool]:
        """Whether it is the wish's turn: False once the person has wished for other things."""
        with self._changed:
            wishes = self._wishes[who]
            wishes.append(wish)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._taken or wish not in wishes)
            comes = wish in wishes
            self._taken |= comes
        try:
            yield comes
        finally:
            if comes:
                with self._changed:
                    self._taken = False
                    self._changed.notify_all()
