"""``python -m kvray.cli`` is ``kvray``."""

from kvray.cli import main

main()
