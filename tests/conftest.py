"""What holds for every test."""

import pytest


@pytest.fixture(autouse=True)
def process_stays_as_it_is(monkeypatch):
    """A page fixes the threads of its process and goes to the root; all tests share the process."""
    monkeypatch.setattr("biox.notebook.limit_threads", lambda n: None)
    monkeypatch.chdir(".")  # undone after the test
