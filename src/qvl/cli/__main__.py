"""``python -m qvl.cli``: the command line without the installed script."""

import sys

from qvl.cli import main

sys.exit(main())
