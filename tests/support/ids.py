"""Names of parametrized tests that are the same in every process."""

import re


def stable(value: object) -> str:
    """The text of a value without the addresses of the functions in it."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
