"""`python -m planner`."""

import sys

INTERRUPTED = 130


def start() -> int:
    """The command line, which Ctrl-C ends without a traceback while it is still being imported as well."""
    try:
        from planner.cli import main

        return main()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(start())
