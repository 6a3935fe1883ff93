"""`python -m cmpta_lib.cli` is `cmpta`."""

import sys

from cmpta_lib.cli import main

sys.exit(main())
