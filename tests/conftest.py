"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# A loaded machine makes single examples slow, which says nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
