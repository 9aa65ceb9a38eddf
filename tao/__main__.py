"""``python -m tao``."""

import sys

from tao.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
