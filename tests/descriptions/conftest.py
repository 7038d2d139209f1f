from __future__ import annotations

from collections.abc import Iterator

import pytest

from .chat_server import Script, running


@pytest.fixture
def server() -> Iterator[Script]:
    with running() as script:
        yield script
