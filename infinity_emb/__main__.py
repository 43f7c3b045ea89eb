"""`python -m infinity_emb` is the command `infinity_emb`."""

from __future__ import annotations

import sys

from infinity_emb.cli import main

if __name__ == "__main__":
    sys.exit(main())
