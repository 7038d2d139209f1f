"""``python -m vmfcoop``."""

from vmfcoop.cli import main

if __name__ == "__main__":  # processes that a command starts import this file again
    main()
