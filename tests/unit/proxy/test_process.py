"""What the process wants for itself."""

import gc

from proxy.process import calm_collector


def test_what_is_loaded_is_not_looked_at_again() -> None:
    loaded, before = [object()], gc.get_threshold()
    try:
        calm_collector()
        assert not any(one is loaded for one in gc.get_objects())
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
