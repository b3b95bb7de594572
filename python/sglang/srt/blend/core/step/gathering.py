"""When a prefill pass pays that nobody decodes beside (beyond the paper)."""

from __future__ import annotations


class Gathering:
    """Lets whoever could begin wait for company, where prefill has passes of its own.

    A prefill pass reads all weights for however few prompts it holds. So does a decode step for however few
    rows it has: a row that is missing wastes its part of that read. So once nobody more fits, nobody begins
    before the missing rows of all steps since then have wasted as much as one pass reads.

    Four rows decode and nobody more fits. One ends, then another one; by the third step a pass is wasted:

    >>> gathering = Gathering()
    >>> gathering.pays(running=0, begun=0, full=False), gathering.pays(running=4, begun=4, full=True)
    (True, False)
    >>> [gathering.pays(running=running, begun=4, full=False) for running in (3, 2, 2)]
    [False, False, True]
    """

    def __init__(self) -> None:
        self._begun = self._running = self._most = self._missed = 0
        self._full = False

    def pays(self, *, running: int, begun: int, full: bool) -> bool:
        """Whether a step should begin requests; True until nobody more fits.

        Args:
            running: requests that hold KV.
            begun: requests that have ever begun.
            full: whether nobody who waits fits, or none of them is to begin before somebody leaves.
        """
        held = self._running + begun - self._begun  # before anybody left who has since the last step
        self._full &= begun == self._begun
        self._begun, self._running = begun, running
        if not self._full:
            if not full:
                return True
            self._full, self._most, self._missed = True, held, 0
        self._most = max(self._most, running)
        self._missed += self._most - running
        return self._missed >= self._most

    def look_again(self) -> None:
        """Others may fit by now, for reasons of their own: the plan has changed."""
        self._full = False
