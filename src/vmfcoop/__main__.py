"""``python -m vmfcoop``."""

from vmfcoop.cli import main

main()
