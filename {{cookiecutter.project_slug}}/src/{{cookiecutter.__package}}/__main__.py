import sys

from .serving import main

if __name__ == "__main__":
    sys.exit(main(f"{__package__}.app:build"))
