"""How this program is called, for hints that can be copied as they are."""

import os
from pathlib import Path


def program() -> str:
    """What starts a command from this folder: a checkout's launcher, or the installed program. Looks at the folder."""
    return "./tollhouse" if os.access("tollhouse", os.X_OK) and Path("tollhouse").is_file() else "tollhouse"
