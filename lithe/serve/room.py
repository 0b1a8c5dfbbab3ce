"""The memory of an engine: pages for those that run, and what is remembered of those that ran."""

from __future__ import annotations

from lithe.model.paged import Pages
from lithe.serve.job import Job
from lithe.serve.prefix import PrefixTree

WATERMARK = 0.01  # share of the pages that nobody is admitted into, so that those who decode find some


class PagedRoom:
    """Pages handed out to jobs; `Room` of a schedule's line."""

    def __init__(self, store: Pages, sharing: bool):
        self.store, self.tree = store, PrefixTree(store) if sharing else None
        self.reading: list[Job] = []  # who were admitted and have not read all
        self.claims: set[tuple] = set()  # pages of text that are being read in this turn
        self.asked = self.saved = 0  # tokens of prompts looked for, and those that need not be read

    def begin(self) -> None:
        """Another turn."""
        self.claims.clear()

    @property
    def spare(self) -> int:
        """Pages that can be had."""
        return len(self.store.free) + (self.tree.spare if self.tree else 0)

    def stats(self) -> dict[str, float]:
        """How full it is, and what was found in it."""
        store, tree = self.store, self.tree
        return {"pages": store.count, "page": store.size, "cache_usage": 1 - self.spare / store.count,
                "pages_kept": len(tree.nodes) if tree else 0, "pages_evicted": tree.evicted if tree else 0,
                "prefix_queries": self.asked, "prefix_hits": self.saved}

    def admit(self, job: Job) -> bool:
        """Whether all that it must read fits beside what those who read will want; pages are taken when they are written."""
        self._adopt(job)
        self.reading = [one for one in self.reading if one.left and one is not job]  # itself, where a turn failed
        promised = sum(self.store.wanted(one.table, one.left + 1) for one in self.reading)
        wanted, mark = self.store.wanted(job.table, job.left + 1), int(WATERMARK * self.store.count)
        first = self.store.count - self.spare == len(job.table.pages)  # it has all for itself
        if wanted + promised <= self.spare - (0 if first else mark):
            self.asked += 0 if job.usage.preempted or job.whole else job.sequence.prompt
            self.reading.append(job)
            return True
        self.store.cut(job.table, 0)
        return False

    def reserve(self, job: Job, rows: int) -> bool:
        wanted = self.store.wanted(job.table, rows)
        if wanted > len(self.store.free) and wanted > self.spare:
            return False
        self.store.reserve(job.table, rows)
        return True

    def release(self, job: Job) -> None:
        """Give back a job's pages; what whole ones hold is remembered for as long as nobody wants them."""
        self.remember(job)
        self.store.cut(job.table, 0)
        job.tree, job.states = None, []
        self.reading = [one for one in self.reading if one is not job]

    def remember(self, job: Job) -> None:
        if self.tree is not None:
            ids = job.sequence.ids
            self.tree.insert(job.key, ids[: min(job.table.length, len(ids))], job.table.pages)

    def ready(self, job: Job, most: int) -> int:
        """How many tokens of its prompt can be read: none while another reads the very page that comes next."""
        if self.tree is None or job.whole:
            return min(most, job.left)
        self._adopt(job)
        end = (job.table.length // self.store.size + 1) * self.store.size
        ids = job.sequence.ids
        if end < len(ids):
            claim = (job.key, *ids[:end])
            if claim in self.claims:
                return 0
            self.claims.add(claim)
        return min(most, job.left)

    def _adopt(self, job: Job) -> None:
        """Go on from what is remembered of the job's text, if it stands at the end of a page."""
        table, size = job.table, self.store.size
        if self.tree is None or job.whole or table.length % size:
            return
        found = self.tree.match(job.key, job.sequence.ids, table.length, len(job.sequence.ids) - 1)
        if not found:
            return
        at = table.length // size
        self.store.hold(found)
        self.store.drop(table.pages[at : at + len(found)])  # that it had been given to write to
        table.pages[at : at + len(found)] = found
        table.length += len(found) * size
        fresh = max(0, min(table.length, job.sequence.prompt) - at * size)
        self.saved += fresh
        if not job.usage.generated:
            job.usage.cached += fresh
