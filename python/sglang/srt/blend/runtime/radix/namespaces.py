"""Cache namespaces are small integers to the planner, which sorts prompts by them.

Upstream's radix tree keeps requests apart that must not share KV: by ``extra_key`` (which already
contains the LoRA id) and by ``cache_salt``. Two prompts share a prefix only inside one namespace.
"""

from __future__ import annotations


class Namespaces:
    """A number for every (extra_key, cache_salt) pair, in order of appearance, so all ranks agree.

    >>> namespaces = Namespaces()
    >>> namespaces.intern("lora", None), namespaces.intern(None, None), namespaces.find("other", None)
    (1, 0, None)
    """

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[tuple[str | None, str | None], int] = {(None, None): 0}

    def intern(self, extra_key: str | None, cache_salt: str | None) -> int:
        """The namespace's number, which ``Planner.add`` gets with a prompt; a new pair gets the next one."""
        return self._ids.setdefault((extra_key, cache_salt or None), len(self._ids))

    def find(self, extra_key: str | None, cache_salt: str | None) -> int | None:
        """The namespace's number, or None when no request of that namespace was ever added."""
        return self._ids.get((extra_key, cache_salt or None))

    def __len__(self) -> int:
        return len(self._ids)
