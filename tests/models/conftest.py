"""What tests of the kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bertkin.models import kernels


@pytest.fixture(scope="module", params=["tiles", "dots"])
def multiplied_by(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test once by matrix tiles, where the machine has them, and once by dot products."""
    if request.param == "tiles" and not kernels.has_tiles():
        pytest.skip("needs matrix tiles (AMX)")
    had = kernels.has_tiles()
    kernels.use_tiles(request.param == "tiles")
    yield request.param
    kernels.use_tiles(had)
