#!/usr/bin/env bash
# tensorboardX 2.6.5: `flush()` does not wait for what was added before it.
#
# `SummaryWriter.flush` is there to make sure that pending events are on disk. Events go
# through a queue to a thread that writes them; `flush` flushes the file and does not ask
# whether the queue is empty. A process that adds five numbers, calls `flush` and then
# ends at once, as one that is killed, mostly leaves none of them. `close()` does wait.
# So events cannot be relied on after a kill: write them anew from a file of one's own.
#
# Seen with tensorboardX 2.6.5, Python 3.11, five times each:
#   flush: 0, 0, 0, 1, 0 of 5 numbers on disk
#   close: 5, 5, 5, 5, 5 of 5 numbers on disk
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'tensorboardX==2.6.5'
cat > "$folder/program.py" << 'PYTHON'
import os
import pathlib
import subprocess
import sys

from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event

NUM = 5
if len(sys.argv) == 3:
    folder, how = sys.argv[1:]
    writer = SummaryWriter(folder)
    for step in range(NUM):
        writer.add_scalar("loss", float(step), step)
    getattr(writer, how)()
    os._exit(0)


def count(folder):
    """The numbers in the one file of events."""
    (path,) = folder.iterdir()
    data, found = path.read_bytes(), 0
    while len(data) > 12:  # length (8 bytes), checksum (4), the event, checksum (4)
        length = int.from_bytes(data[:8], "little")
        found += len(Event.FromString(data[12 : 12 + length]).summary.value)
        data = data[16 + length :]
    return found


counts = {}
for how in ("flush", "close"):
    counts[how] = []
    for trial in range(5):
        folder = pathlib.Path(sys.argv[1]) / f"{how}{trial}"
        subprocess.run([sys.executable, __file__, folder, how], check=True)
        counts[how].append(count(folder))
    print(f"{how}: {', '.join(map(str, counts[how]))} of {NUM} numbers on disk")
assert counts["close"] == [NUM] * 5, "close() lost some"
assert sum(counts["flush"]) < NUM * 5, "it changed: flush() waits"
PYTHON
"$folder/venv/bin/python" "$folder/program.py" "$folder"
