"""What holds for every test."""

import pytest


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch):
    """A page fixes the threads of its process, which all tests share."""
    monkeypatch.setattr("biox.notebook._fix_threads", lambda n: None)
