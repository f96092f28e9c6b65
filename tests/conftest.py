"""Settings every test shares; its presence also puts tests/ on the path, for `memory_split`."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded: workers share the cores, and each keeps to one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("bertkin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bertkin")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared corpora and compiled kernels of the tests stay out of the user's cache."""
    os.environ["BERTKIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
