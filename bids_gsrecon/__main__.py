"""``python -m bids_gsrecon``."""

import sys

from bids_gsrecon.cli.run import main

if __name__ == '__main__':
    sys.exit(main())
