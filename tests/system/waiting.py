"""What the tests here wait by: for something to be so, within a bound."""

import sys
import time
from pathlib import Path


def until(what, condition, seconds, every_s):
    """The first answer of `condition` that is true; ends the test if none is within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > end:
            sys.exit(f"{Path(sys.argv[0]).stem}: gave up waiting until {what}")
        time.sleep(every_s)
