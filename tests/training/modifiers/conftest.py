import pytest

from advfast.training import finish


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    # They take longer than the runs.
    monkeypatch.setattr(finish, "_pictures", lambda *arguments: None)
