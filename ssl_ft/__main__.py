"""`python -m ssl_ft` is the command `ssl-ft`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # `-m` puts the working directory first on the path, where a user's own `pipelines` folder would hide ours.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from ssl_ft.cli import main

    sys.exit(main())
