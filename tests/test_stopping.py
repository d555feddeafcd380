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
        signal.raise_signal(signal.Signals[name])
        assert (stop.requested, stop.exit_code) == (name, code)
        signal.raise_signal(signal.SIGTERM)  # of a launcher, to a process that knows already
        assert (stop.requested, stop.exit_code) == (name, code)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


@pytest.mark.parametrize("world", ["1", None])
def test_a_second_interrupt_ends_at_once(monkeypatch, world):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert stop.requested == "SIGINT"


def test_a_launcher_repeats_the_interrupt_of_the_terminal(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(stopping, "_ECHO", 1000.0)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        monkeypatch.setattr(stopping, "_ECHO", 0.0)  # the time is over: this one is the user's
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_outside_of_the_main_thread_nothing_is_noted():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopSignals() as stop:
            found.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(None, before)]
