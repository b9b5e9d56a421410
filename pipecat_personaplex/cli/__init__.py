"""The ``personaplex`` command. Each command has a module; ``commands`` joins them.

Commands import torch in their bodies, so that ``--help`` returns at once. ``options`` and
``serve`` declare the environment variables that may set an option.
"""

from pipecat_personaplex.cli.commands import main

__all__ = ["main"]
