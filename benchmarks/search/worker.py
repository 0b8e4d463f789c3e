"""One contender on one workload, in a process of its own; used by run.py.

python worker.py '{"workload": …, "rule": …, "contender": …, "seed": …, "level": …, …}' OUT
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from contenders import CONTENDERS
from training import Case, Trace, summary
from workloads import WORKLOADS


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    name, workload = asked["contender"], WORKLOADS[asked["workload"]]
    if asked["is_quick"]:
        workload = replace(workload, epochs=max(3, workload.epochs // 20))
    contender = CONTENDERS[name]
    module = import_module(contender.module)
    data = workload.data(Path(asked["data"]), Path(asked["cache"]))
    if contender.package:
        import_module(contender.package.replace("-", "_"))
    case = Case(workload, asked["rule"], asked["seed"], data, Trace(asked["level"]))
    if contender.ours:
        found, clock = module.SEARCHES[name](case, asked["plan"])
    else:
        found, clock = module.searched(name, case)
    Path(sys.argv[2]).write_text(json.dumps(summary(case, found, clock)))


if __name__ == "__main__":
    main()
