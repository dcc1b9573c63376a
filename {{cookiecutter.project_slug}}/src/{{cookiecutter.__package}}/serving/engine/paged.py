"""Continuous batching over an OpenVINO graph, with keys and values in pages."""

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
"""The maximum number of tokens in a step, so that a long prompt does not delay the others."""
STOP_SECONDS = 30


@dataclass(eq=False)
class _Row:
    """A request and its progress."""

    request: Request
    tokens: list[int]
    """The prompt and the new tokens."""
    read: int = 0
    """How many tokens have their keys and values in the pages."""
    pages: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """The digest of each full page."""

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.read


class PagedBatch:
    """Continuous batching: requests join and leave at any step, and each step reads all of them.

    Their pages are in one cache. When it is full, waiting requests keep waiting, and the newest
    running request gives up its pages and resumes later. Pages of requests that have ended stay
    for requests with the same prefix, until their space is needed.
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
            logger.exception("The generation thread failed")
        finally:
            with self._changed:
                self._stopping = True
                rows = [row.request for row in [*self._running, *self._waiting]]
                for request in rows + self._arrived:
                    request.add([], failure=failure)

    def _receive(self) -> bool:
        """Moves new requests to the waiting ones, or waits if there are no requests."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._arrived or self._waiting or self._running
            )
            self._waiting += [_Row(each, list(each.prompt)) for each in self._arrived]
            self._arrived.clear()
            return not self._stopping

    def _step(self) -> None:
        """Reads the next tokens of all running rows, and adds a token to those that are fully read."""
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
        """Starts waiting rows, in order, while there are enough pages for their tokens."""
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
        """Gives a row the cached pages of its prefix. Its last token must be read anyway."""
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
        """Returns what the step reads: one token of each text, and prompts in the remaining space."""
        writing = sum(row.unread == 1 for row in self._running)
        # At least one page of prompts, however many rows write.
        left = max(STEP_TOKENS - writing, self._decoder.page_tokens)
        wanted: list[tuple[_Row, int]] = []
        for row in self._running:
            count = 1 if row.unread == 1 else max(min(row.unread, left), 0)
            left -= count if row.unread > 1 else 0
            wanted.append((row, count))
        return [
            (row, count)
            for row, count in wanted
            # The newest row may have given up its pages for an older one.
            if count and row in self._running and self._has_pages(row, row.read + count)
        ]

    def _has_pages(self, row: _Row, tokens: int) -> bool:
        """Gives a row enough pages for its tokens. The newest row may have to give up its own."""
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
        """Makes full pages available to other rows."""
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
    """The use of the pages: by how many rows, and the content of those that are no longer used."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._users = [0] * count
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Unused pages that can still be found by their digest, the oldest first."""

    @property
    def available(self) -> int:
        return len(self._free) + len(self._kept)

    def take(self) -> int | None:
        """Returns an unused page and drops its content, or returns None if all are in use."""
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
        """Returns the page with that digest and adds a user, or returns None."""
        page = self._named.get(digest)
        if page is not None:
            self._kept.pop(page, None)
            self._users[page] += 1
        return page

    def name(self, page: int, digest: bytes) -> None:
        """Stores the digest of a page's content. Of two equal pages, the first one is found."""
        if digest not in self._named:
            self._named[digest] = page
            self._names[page] = digest

    def release(self, pages: Sequence[int]) -> None:
        """Removes one user from each page. The end of a text is evicted before its beginning."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            if page in self._names:
                self._kept[page] = None
            else:
                self._free.append(page)


def _digest(row: _Row, number: int, size: int) -> bytes:
    """Returns a digest of a page's tokens and of all tokens before it."""
    before = row.digests[number - 1] if number else b""
    tokens = row.tokens[number * size : (number + 1) * size]
    return hashlib.sha256(before + np.array(tokens, np.int64).tobytes()).digest()
