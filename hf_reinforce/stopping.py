"""Stopping at the next good moment when the user or a scheduler asks for it, instead of in the middle of something."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

_ECHO = 1.0  # seconds in which a launcher repeats a signal


class StopSignals:
    """Notes SIGTERM and SIGINT while it is entered, so that long work can come to an end of its own.

        with StopSignals() as stop:
            for shard in shards:
                write(shard)
                if stop.requested:
                    raise SystemExit(stop.exit_code)

    A further SIGINT raises KeyboardInterrupt; among several processes not within a second, as Ctrl-C reaches each of
    them from the terminal and from the launcher. A further SIGTERM changes nothing: launchers send one to processes
    that the scheduler has already told. Outside the main thread, where Python allows no handlers, nothing is noted.

    Attributes:
        requested: name of the first signal that came, `"SIGTERM"` or `"SIGINT"`; None as long as none has come.
    """

    requested: str | None = None

    def __enter__(self) -> "StopSignals":
        self._since, self._previous = 0.0, dict[signal.Signals, Any]()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        echo = _ECHO if os.getenv("WORLD_SIZE", "1") != "1" else 0.0
        if self.requested is None:
            self._since, self.requested = time.monotonic(), signal.Signals(number).name
        elif number == signal.SIGINT and time.monotonic() - self._since >= echo:
            raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended, 128 + its number; 0 as long as none has come."""
        return 128 + signal.Signals[self.requested] if self.requested else 0
