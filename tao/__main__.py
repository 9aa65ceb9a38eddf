"""``python -m tao``."""

import sys

from tao.cli import main

if __name__ == "__main__":
    sys.exit(main())
