"""`python -m prime_megatron`: the same as the `prime-megatron` script."""

import sys

from prime_megatron.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
