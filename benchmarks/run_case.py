"""One case of `suite.py`, in a process of its own. It takes a line of JSON, and writes a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from process import use_cores


def main() -> None:
    request = json.loads(sys.argv[1])
    use_cores(request["threads"])  # before JAX starts, whose pools are as large
    from common import machine, write_report
    from measure import measure
    from suite_cases import case_named

    case = case_named(request["case"])
    if request["tiny"]:
        case = case.tiny()
    arguments = (request[x] for x in ("dtype", "threads", "seconds", "peer_python"))
    found = measure(case, *arguments)
    write_report(Path(request["output"]), {"machine": machine(), **found})


if __name__ == "__main__":
    main()
