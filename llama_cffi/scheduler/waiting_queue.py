"""WaitingQueue: the waiting requests, by priority and arrival, and fair between clients."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

from .request import Request

__all__ = ["Entry", "WaitingQueue"]

Entry = tuple[float, int, Request]  # the order of service, then the request


class WaitingQueue:
    """The waiting requests.

    The first one in the order of service names the priority that is served. Of several clients with
    waiting requests of this priority, the one with the fewest running requests is next, and of
    equals the one that was served least recently; the requests of one client stay in order.
    """

    def __init__(self) -> None:
        # By priority and client; none is empty.
        self._heaps: dict[tuple[int, str | None], list[Entry]] = {}
        self._n = self._n_served = 0
        self._served: dict[str | None, int] = {}  # of clients that wait: when, in requests

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Entry]:
        """Yield all, unordered."""
        return chain.from_iterable(self._heaps.values())

    def push(self, entry: Entry) -> None:
        """Add a request."""
        heapq.heappush(self._heaps.setdefault(_group(entry[2]), []), entry)
        self._n += 1

    def first(self, running: Iterable[Request]) -> Entry:
        """Return the next request; the queue is not empty.

        Args:
            running: The running requests.
        """
        first = min(heap[0] for heap in self._heaps.values())
        heads = [
            heap[0]
            for (priority, _), heap in self._heaps.items()
            if priority == first[2].priority
        ]  # fmt: skip
        if len(heads) == 1:
            return first
        n_running = Counter(request.client for request in running)

        def rank(head: Entry) -> tuple[int, int, Entry]:
            client = head[2].client
            return n_running[client], self._served.get(client, 0), head

        return min(heads, key=rank)

    def pop(self, entry: Entry) -> None:
        """Remove a request that `first` returned."""
        heap = self._heaps[_group(entry[2])]
        assert heap[0] is entry
        heapq.heappop(heap)
        self._n_served += 1
        self._served[entry[2].client] = self._n_served
        self._removed(entry[2])

    def discard(self, request: Request) -> None:
        """Remove a request, if it is here."""
        heap = self._heaps.get(_group(request), [])
        for i, entry in enumerate(heap):
            if entry[2] is request:
                heap[i] = heap[-1]
                heap.pop()
                heapq.heapify(heap)
                self._removed(request)
                return

    def clear(self) -> None:
        """Remove all."""
        self._heaps.clear()
        self._served.clear()
        self._n = 0

    def _removed(self, request: Request) -> None:
        self._n -= 1
        if not self._heaps[_group(request)]:
            del self._heaps[_group(request)]
            if all(client != request.client for _, client in self._heaps):
                self._served.pop(request.client, None)


def _group(request: Request) -> tuple[int, str | None]:
    return request.priority, request.client
