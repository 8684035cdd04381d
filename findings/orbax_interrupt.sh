#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: Ctrl-C during a restore may come out as a plain `Exception`.
#
# An interrupt is a `KeyboardInterrupt`, no `Exception`, so that `except Exception` lets
# it pass. Where it arrives while Orbax waits for an array, Orbax wraps it: what comes out
# is `Exception: Encountered error while reading array index ...`, whose cause is the
# interrupt. A program that goes back to an older checkpoint when the latest one cannot be
# read then takes an intact checkpoint for a damaged one, and goes on running. The chain
# of causes tells the two apart.
#
# Seen with orbax-checkpoint 0.12.8 and jax 0.10.2, interrupts at random moments of a
# restore of 20 arrays, 300 times (numbers vary):
#   KeyboardInterrupt: 270
#   Exception, caused by KeyboardInterrupt: 27
#   finished before: 3
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'orbax-checkpoint==0.12.8' 'jax==0.10.2'
# Interrupted reads complain when they are collected.
"$folder/venv/bin/python" - "$folder" 2> "$folder/errors" << 'PYTHON' ||
import collections
import os
import pathlib
import random
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

signal.signal(signal.SIGINT, signal.default_int_handler)
path = pathlib.Path(sys.argv[1]) / "checkpoint"
tree = {str(i): i * jnp.ones((200, 200)) for i in range(20)}
like = jax.eval_shape(lambda: tree)
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)


def restore():
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.restore(path, like)


restore()
began = time.monotonic()
restore()
duration = time.monotonic() - began

outcomes = collections.Counter()
generator = random.Random(0)
for _ in range(300):
    delay = generator.uniform(0, duration)
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    outcome = "finished before"
    try:
        timer.start()
        try:
            restore()
        except Exception as error:
            causes = []
            while error is not None:
                causes.append(error)
                error = error.__cause__ or error.__context__
            assert any(isinstance(cause, KeyboardInterrupt) for cause in causes)
            outcome = "Exception, caused by KeyboardInterrupt"
        timer.join()
        time.sleep(0.05)
    except KeyboardInterrupt:
        outcome = "KeyboardInterrupt" if outcome == "finished before" else outcome
        timer.join()
    outcomes[outcome] += 1
for outcome, count in outcomes.most_common():
    print(f"{outcome}: {count}")
assert outcomes["Exception, caused by KeyboardInterrupt"], "it changed"
PYTHON
{
  cat "$folder/errors"
  exit 1
}
