"""`python -m jaxbig` is the `jaxbig` command."""

import sys

from jaxbig.cli import main

if __name__ == "__main__":
    sys.exit(main())
