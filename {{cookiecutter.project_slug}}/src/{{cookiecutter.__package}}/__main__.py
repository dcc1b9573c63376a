import sys

from .app import build
from .serving import main

if __name__ == "__main__":
    sys.exit(main(build))
