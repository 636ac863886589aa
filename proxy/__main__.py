"""The entry point of the `tollhouse` command."""

import sys

from proxy.cli.root import run


def main() -> int:
    """What the installed script calls."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
