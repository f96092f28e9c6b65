"""Settings every test shares; its presence also puts tests/ on the path, for `memory_split`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("bertkin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bertkin")
