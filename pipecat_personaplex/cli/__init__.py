"""The ``personaplex`` command. Each command has a module; ``commands`` joins them.

Commands import torch in their bodies, so that ``--help`` returns at once. ``options``, ``serve``,
``talk`` and ``eval_latency`` declare the environment variables that may set an option;
``eval_score`` reads the API keys of judges.
"""

from pipecat_personaplex.cli.commands import main

__all__ = ["main"]
