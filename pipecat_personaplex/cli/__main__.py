"""``python -m pipecat_personaplex.cli``."""

import sys

from pipecat_personaplex.cli.commands import main

sys.exit(main())
