"""One batch over a graph of OpenVINO's runtime, whose keys and values lie in pages."""

import hashlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from .generation import Request, pick
from .runtime import Decoder, Part
from .scores import ArrayScores

logger = logging.getLogger(__name__)

STEP_TOKENS = 256
"""Tokens that a step reads at the most, so that a long prompt holds nobody up for long."""
STOP_SECONDS = 30


@dataclass(eq=False)
class _Row:
    """A request, and how far it is."""

    request: Request
    tokens: list[int]
    """Its prompt and its text."""
    read: int = 0
    """Tokens whose keys and values are in its pages."""
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """What names each page that is full of its tokens."""

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.read


class PagedBatch:
    """Requests join and leave while others run, and each step reads tokens of all of them.

    Their pages come out of one cache. Where it is full, those who wait go on waiting, and the
    youngest that runs gives its pages up and goes on later from where it was. Pages of requests
    that have ended stay for those that begin as they do, until others need them.
    """

    def __init__(
        self, decoder: Decoder, end: Collection[int], running_requests: int, cache_tokens: int
    ) -> None:
        self._decoder = decoder
        self._end = sorted(end)
        self._running_requests = running_requests
        self._pages = Pages(-(-cache_tokens // decoder.page_tokens))
        decoder.allocate(self._pages.count)
        self._arrived: list[Request] = []
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        """The oldest first."""
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def start(self, request: Request) -> None:
        with self._changed:
            if not self.is_running():
                request.add([], failure="the generation thread has ended")
                return
            self._arrived.append(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        request.left = True

    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        failure = "the generation was stopped"
        try:
            while self._receive():
                self._step()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            logger.exception("The generation ended")
        finally:
            with self._changed:
                self._stopping = True
                rows = [row.request for row in [*self._running, *self._waiting]]
                for request in rows + self._arrived:
                    request.add([], failure=failure)

    def _receive(self) -> bool:
        """Takes in those who have come, and waits where there is nothing to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._arrived or self._waiting or self._running
            )
            self._waiting += [_Row(each, list(each.prompt)) for each in self._arrived]
            self._arrived.clear()
            return not self._stopping

    def _step(self) -> None:
        """Reads the next tokens of all that run, and gives those that are read one more."""
        for row in [row for row in self._running if row.request.left]:
            self._leave(row)
        self._waiting = deque(row for row in self._waiting if not row.request.left)
        self._admit()
        planned = self._plan()
        if not planned:
            return
        scores = self._decoder.scores(
            [
                Part(
                    tokens=row.tokens[row.read : row.read + count],
                    past=row.read,
                    pages=row.pages,
                    is_last=row.unread == count,
                )
                for row, count in planned
            ]
        )
        for row, count in planned:
            row.read += count
            self._name(row)
        rows = [row for row, _ in planned if not row.unread]
        if not rows:
            return
        picked = pick([row.request for row in rows], ArrayScores(scores), self._end)
        for row, token in zip(rows, picked, strict=True):
            request = row.request
            last = token is None or (
                token in self._end or request.received + 1 >= request.sampling.max_new_tokens
            )
            if last:
                self._leave(row)
            if token is not None:
                row.tokens.append(token)
                request.add([token], ended=last)

    def _admit(self) -> None:
        """Lets those who wait run, in their order, while there are pages for what they read."""
        while self._waiting and len(self._running) < self._running_requests:
            row = self._waiting[0]
            self._share(row)
            missing = self._pages_of(len(row.tokens)) - len(row.pages)
            if missing > self._pages.available and self._running:
                self._give_up(row)
                return
            self._running.append(self._waiting.popleft())
            row.request.admit()

    def _share(self, row: _Row) -> None:
        """Gives a row the pages that begin as it does. Its last token is read in any case."""
        size = self._decoder.page_tokens
        for number in range((len(row.tokens) - 1) // size):
            digest = _digest(row, number, size)
            page = self._pages.find(digest)
            if page is None:
                break
            row.pages.append(page)
            row.digests.append(digest)
            row.read += size

    def _plan(self) -> list[tuple[_Row, int]]:
        """Returns what the step reads: one token of each text, and of prompts what is left."""
        writing = sum(row.unread == 1 for row in self._running)
        # However many write, those who come are read.
        left = max(STEP_TOKENS - writing, self._decoder.page_tokens)
        wanted: list[tuple[_Row, int]] = []
        for row in self._running:
            count = 1 if row.unread == 1 else max(min(row.unread, left), 0)
            left -= count if row.unread > 1 else 0
            wanted.append((row, count))
        return [
            (row, count)
            for row, count in wanted
            # The youngest may have given its pages up for an older one.
            if count and row in self._running and self._has_pages(row, row.read + count)
        ]

    def _has_pages(self, row: _Row, tokens: int) -> bool:
        """Gives a row pages for so many tokens, for which the youngest may have to wait."""
        while len(row.pages) < self._pages_of(tokens):
            page = self._pages.take()
            if page is not None:
                row.pages.append(page)
                continue
            youngest = self._running.pop()
            self._give_up(youngest)
            self._waiting.appendleft(youngest)
            if youngest is row:
                return False
        return True

    def _name(self, row: _Row) -> None:
        """Lets others find the pages that are full now."""
        size = self._decoder.page_tokens
        for number in range(len(row.digests), row.read // size):
            digest = _digest(row, number, size)
            row.digests.append(digest)
            self._pages.name(row.pages[number], digest)

    def _leave(self, row: _Row) -> None:
        self._running.remove(row)
        self._give_up(row)

    def _give_up(self, row: _Row) -> None:
        self._pages.release(row.pages)
        row.read = 0
        row.pages, row.digests = [], []

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self._decoder.page_tokens)


class Pages:
    """Which pages are in use, and by how many; and what those hold that nobody uses."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._users = [0] * count
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Pages that nobody uses and somebody may find; those first that ended first."""

    @property
    def available(self) -> int:
        return len(self._free) + len(self._kept)

    def take(self) -> int | None:
        """Returns a page that nobody uses, what is in it being given up; None where all are used."""
        if self._free:
            page = self._free.pop()
        elif self._kept:
            page, _ = self._kept.popitem(last=False)
            del self._named[self._names.pop(page)]
        else:
            return None
        self._users[page] = 1
        return page

    def find(self, digest: bytes) -> int | None:
        """Returns the page of that name, for one more user."""
        page = self._named.get(digest)
        if page is not None:
            self._kept.pop(page, None)
            self._users[page] += 1
        return page

    def name(self, page: int, digest: bytes) -> None:
        """Names a page by what is in it. Of two that hold the same, the first is found."""
        if digest not in self._named:
            self._named[digest] = page
            self._names[page] = digest

    def release(self, pages: Sequence[int]) -> None:
        """Takes one user from each. The end of a text is given up before what it begins with."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            if page in self._names:
                self._kept[page] = None
            else:
                self._free.append(page)


def _digest(row: _Row, number: int, size: int) -> bytes:
    """Returns a name for a page of a text, in which all that comes before it counts."""
    before = row.digests[number - 1] if number else b""
    tokens = row.tokens[number * size : (number + 1) * size]
    return hashlib.sha256(before + np.array(tokens, np.int64).tobytes()).digest()
