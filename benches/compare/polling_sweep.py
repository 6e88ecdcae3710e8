"""One sweep as a polling daemon makes it: walk, read, parse, compare, delete.

Prints how many results it has seen, and how many it has deleted (with --dry-run: none).
"""

import json
import os
import sys
import time
from datetime import datetime

RESULT_SUFFIX = ".result.json.lz4"
METADATA_SUFFIX = ".metadata.json"


def expiry(value):
    """Seconds since the epoch, of a number or of an ISO 8601 text."""
    return value if isinstance(value, (int, float)) else datetime.fromisoformat(value).timestamp()


def main():
    root = sys.argv[1]
    dry_run = "--dry-run" in sys.argv[2:]
    seen = deleted = 0
    now = time.time()
    for directory, _, names in os.walk(root):
        for name in names:
            if not name.endswith(RESULT_SUFFIX):
                continue
            seen += 1
            result = os.path.join(directory, name)
            metadata = result.removesuffix(RESULT_SUFFIX) + METADATA_SUFFIX
            try:
                with open(metadata, encoding="utf-8") as file:
                    expires_at = expiry(json.load(file)["expires_at"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if expires_at <= now and not dry_run:
                os.unlink(result)
                os.unlink(metadata)
                deleted += 1
    print(seen, deleted)


main()
