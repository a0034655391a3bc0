"""How many tables the laws of ``test_properties.py`` are held against: few and always the same ones, or ``--hypothesis-profile=many``."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

_ALWAYS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

settings.register_profile("few", max_examples=40, derandomize=True, phases=(Phase.explicit, Phase.generate), **_ALWAYS)
settings.register_profile("many", max_examples=400, derandomize=True, print_blob=True, **_ALWAYS)
settings.load_profile("few")
