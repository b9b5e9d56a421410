"""``python -m pipecat_personaplex.cli``."""

import sys

from pipecat_personaplex.cli.app import main

sys.exit(main())
