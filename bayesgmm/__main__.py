"""``python -m bayesgmm``: the ``bayesgmm`` command."""

from __future__ import annotations

import sys

from bayesgmm.cli import main

if __name__ == "__main__":
    sys.exit(main())
