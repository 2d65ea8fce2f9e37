"""``python -m clearmargin.cli``: what ``torchrun`` starts."""

from clearmargin.cli.app import main

main()
