"""The ``personaplex`` command: one module a command, the rest in ``app``.

What loads torch is imported inside the commands, so that ``--help`` answers at once. Of this
package, only ``options`` reads the environment.
"""

from pipecat_personaplex.cli.app import main

__all__ = ["main"]
