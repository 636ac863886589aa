"""What the process wants for itself."""

import gc

from proxy.process import keep_loaded


def test_what_is_loaded_is_not_looked_at_again() -> None:
    loaded = [object()]
    try:
        keep_loaded()
        assert not any(one is loaded for one in gc.get_objects())
    finally:
        gc.unfreeze()
