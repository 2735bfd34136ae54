"""The command line: `uncomp`, or `python -m uncomp_cli`. Ctrl-C ends it quietly also while the rest is imported."""

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    try:
        from uncomp_cli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
