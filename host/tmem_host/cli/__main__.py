# SPDX-License-Identifier: Apache-2.0
"""``python -m tmem_host.cli``: the same command where the console script is not installed."""

from tmem_host.cli import main

if __name__ == "__main__":
    main()
