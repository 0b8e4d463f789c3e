"""The changes of the network itself, by code."""

from __future__ import annotations

from typing import Any

CHANGES: dict[str, Any] = {}
