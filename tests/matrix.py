"""Lists the combinations of answers that `nox -s generated` tests."""

import argparse
import json

from .answers import MATRIX, in_words, name_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s matrix --", description=__doc__)
    parser.add_argument("--json", action="store_true", help="only the names, for a workflow")
    arguments = parser.parse_args()
    rows = MATRIX.rows()
    if arguments.json:
        print(json.dumps([name_of(row) for row in rows]))
        return
    for row in rows:
        print(f"{name_of(row)}\n    {in_words(row)}")
    print(
        f"{len(rows)} combinations cover all {len(MATRIX.pairs())} pairs of answers, of "
        f"{sum(1 for _ in MATRIX.allowed({}))} combinations that there are; "
        f"{len(MATRIX.forbidden)} are forbidden. One alone: nox -s generated -- -k NAME"
    )


if __name__ == "__main__":
    main()
