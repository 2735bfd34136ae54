"""`python -m uncomp_cli` runs the command line."""

from uncomp_cli.cli.app import main

if __name__ == "__main__":
    main()
