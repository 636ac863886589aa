"""The entry point of the `tollhouse` command."""

import sys
from typing import Final

# As `proxy.cli.exits` has it, which may not have been imported yet.
INTERRUPTED: Final = 130


def main() -> int:
    """What the installed script calls."""
    try:
        # In here, since a Ctrl-C may come while it is imported.
        from proxy.cli.root import run  # noqa: PLC0415

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
