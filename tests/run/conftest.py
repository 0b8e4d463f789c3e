from __future__ import annotations

from collections.abc import Iterator

import pytest
from children import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()
