"""The command line: `uncomp`, or `python -m uncomp_cli`. Ctrl-C ends it quietly also while the rest is imported."""

import sys
from typing import NoReturn

_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line."""
    try:
        from uncomp_cli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
