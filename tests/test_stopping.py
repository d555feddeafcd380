"""SIGTERM and SIGINT are noted, and what a second one does."""

import signal
import threading

import pytest

from hf_reinforce import stopping
from hf_reinforce.stopping import StopSignals


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_is_noted(name, code):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert (stop.requested, stop.exit_code) == (None, 0)
        for number in (signal.Signals[name], signal.SIGTERM):  # the second of a launcher, to a process that knows
            signal.raise_signal(number)
            assert (stop.requested, stop.exit_code) == (name, code)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


@pytest.mark.parametrize(("world", "echo"), [("1", 1000.0), ("2", 1000.0), ("2", 0.0)])
def test_a_second_interrupt_ends_at_once_but_not_when_a_launcher_repeats_the_first(monkeypatch, world, echo):
    monkeypatch.setenv("WORLD_SIZE", world)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(stopping, "_ECHO", echo)
        if world == "1" or echo == 0.0:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        else:
            signal.raise_signal(signal.SIGINT)
    assert stop.exit_code == 130


def test_outside_of_the_main_thread_nothing_is_noted():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopSignals() as stop:
            found.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(None, before)]
