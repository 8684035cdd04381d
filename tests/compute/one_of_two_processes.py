"""Run by test_devices.py: trains on two processes, `python FILE PORT ID FOLDER`."""

import sys

import jax
import optax
from quadratic import quadratic, sample

from metajax.training.trainer import train

port, process, folder = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
for steps in (6, 10):  # the second time it goes on
    result = train(
        quadratic(noise=0.1),
        sample,
        optax.adam(0.1),
        steps=steps,
        tasks_per_step=8,
        validation=sample,
        validate_every=5,
        num_validation_tasks=10,
        checkpoint_every=3,
        run_dir=folder,
        progress=False,
    )
theta = jax.device_get(result.best_params["theta"])
print("theta", *theta.tolist(), len(result.history))
