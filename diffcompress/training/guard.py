"""Guard rails: steps whose losses or gradients were not finite, and how many are too many."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from diffcompress.training.state import Counters

# So many skipped steps among the last WINDOW call for a rollback.
MOST_SKIPPED, WINDOW = 5, 20


class Guard:
    """Flags stay on the device until there is reason to wait for it. diverging: too many steps were skipped."""

    def __init__(self) -> None:
        self.diverging = False
        self._unread: list[Tensor] = []
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def see(self, finite: Tensor) -> None:
        """Whether the step just taken was finite (bool, 0-d)."""
        self._unread.append(finite)

    def settle(self, counters: Counters) -> bool:
        """Read what was seen since the last call, and count it in `counters`; True where the last step was finite."""
        if not self._unread:
            return True
        flags = torch.stack(self._unread).tolist()
        self._unread.clear()
        for finite in flags:
            self._recent.append(not finite)
            counters.skipped += not finite
            self.diverging |= sum(self._recent) >= MOST_SKIPPED
        return bool(flags[-1])
