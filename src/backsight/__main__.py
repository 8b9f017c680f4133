"""``python -m backsight`` is the command ``backsight``."""

from backsight.cli import main

main()
