"""easyfsl in a process of its own: answers requests, one line of JSON each.

    python -m benchmarks.peers.worker_easyfsl

    {"do": "prepare", "tasks": {...}, "double": BOOL}                   -> versions
    {"do": "answer", "method": NAME, "first": I, "count": N, "path": P} -> seconds

`tasks` are arguments of `few_shot_embeddings`. Answers are written to `path` as an
array `[N, m, way]`; the time is that of all tasks one after the other, without it. They
are probabilities of the methods that descend and what easyfsl gives of the others.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.peers.embeddings import few_shot_embeddings
from benchmarks.peers.worker_torch import import_beside_torchvision


def methods() -> dict[str, Any]:
    """The methods by metajax's names."""
    easyfsl = import_beside_torchvision("easyfsl.methods")
    return {
        "simple_shot": easyfsl.SimpleShot,
        "bd_cspn": easyfsl.BDCSPN,
        "laplacian_shot": easyfsl.LaplacianShot,
        "tim": easyfsl.TIM,
        "transductive_fine_tuning": easyfsl.TransductiveFinetuning,
        "pt_map": easyfsl.PTMAP,
    }


class Prepared:
    """Tasks and methods as easyfsl takes them."""

    def __init__(self, tasks: dict[str, Any], *, double: bool) -> None:
        dtype = torch.float64 if double else torch.float32
        # LaplacianShot makes its graph in the default type.
        torch.set_default_dtype(dtype)
        self.support, self.queries = (
            torch.from_numpy(rows).to(dtype) for rows in few_shot_embeddings(**tasks)
        )
        self.labels = torch.arange(tasks["way"]).repeat_interleave(tasks["shot"])
        # SimpleShot normalises, as in its paper.
        options: dict[str, dict[str, Any]] = {
            "simple_shot": {"feature_normalization": 2.0},
            "tim": {"use_softmax": True},
            "transductive_fine_tuning": {"use_softmax": True},
        }
        self.methods = {
            name: make(**options.get(name, {})).eval()
            for name, make in methods().items()
        }

    def answer(self, method: str, first: int, count: int) -> tuple[float, np.ndarray]:
        """Seconds, and the answers."""
        classifier, answers = self.methods[method], []
        start = time.perf_counter()
        with torch.no_grad():
            for task in range(first, first + count):
                classifier.process_support_set(self.support[task], self.labels)
                answers.append(classifier(self.queries[task]))
        seconds = time.perf_counter() - start
        return seconds, torch.stack(answers).numpy()


def main() -> None:
    """Serves requests until standard input ends."""
    # Libraries print; what they print must not reach the protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    prepared: Prepared | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            prepared = Prepared(request["tasks"], double=request["double"])
            easyfsl = importlib.import_module("easyfsl")
            versions = {"torch": torch.__version__, "easyfsl": easyfsl.__version__}
            answer: dict[str, Any] = {"versions": versions}
        elif request["do"] == "answer" and prepared is not None:
            seconds, found = prepared.answer(
                request["method"], request["first"], request["count"]
            )
            np.save(request["path"], found)
            answer = {"seconds": seconds}
        else:
            raise ValueError(f"Cannot do {request!r}.")
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
