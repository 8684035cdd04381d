"""The PyTorch peers: learn2learn, higher, TorchOpt, and `torch.func` by itself.

Each follows its own library's examples of MAML; the network, the data, the losses and
Adam are the same for all.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.items import (
    FEATURES,
    Item,
    data_of,
    images_of,
    parts_of,
    weights_of,
)
from benchmarks.peers.worker import THREADS, Step

Task = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def prepare(item: Item, variant: str) -> tuple[Step, dict[str, Any]]:
    """See `benchmarks.peers.worker.prepare`."""
    torch.set_num_threads(THREADS)
    facts = {"versions": {"torch": torch.__version__}}
    if item.kind == "sampling":
        return sampling(item), facts
    if item.kind in ("product", "convolution"):
        return part(item), facts
    model, tasks = make_model(item), make_tasks(item)
    loss: Loss = F.mse_loss if item.kind == "sinusoid" else F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if variant == "func":
        backward = with_func(item, model, tasks, loss)
    elif item.kind == "prototypical":
        backward = each(tasks, with_prototypes(model))
    else:
        build = {
            "learn2learn": with_learn2learn,
            "first_order": with_learn2learn,
            "higher": with_higher,
            "torchopt": with_torchopt,
        }[variant]
        backward = build(item, model, tasks, loss, first_order=variant == "first_order")

    def step(count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad()
            mean = backward()
            optimizer.step()
        return mean

    return step, facts


class Conv4(nn.Module):
    """Four blocks; mean over space (or what pooling leaves) and a head, if any."""

    def __init__(self, *, is_strided: bool, num_outputs: int | None) -> None:
        super().__init__()
        self.is_strided = is_strided
        for index in range(4):
            inputs = 1 if index == 0 else FEATURES
            stride = 2 if is_strided else 1
            conv = nn.Conv2d(inputs, FEATURES, 3, stride=stride, padding=1)
            self.add_module(f"conv{index}", conv)
            norm = nn.BatchNorm2d(FEATURES, track_running_stats=False)
            self.add_module(f"norm{index}", norm)
        self.head = nn.Linear(FEATURES, num_outputs) if num_outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[n, 1, H, W]` to logits or embeddings."""
        for index in range(4):
            x = getattr(self, f"conv{index}")(x)
            x = F.relu(getattr(self, f"norm{index}")(x))
            x = x if self.is_strided else F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


class MLP(nn.Module):
    """Dense layers with ReLU between them."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name, kernel in weights.items():
            self.add_module(name, nn.Linear(*kernel.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[n, 1]` to `[n, 1]`."""
        x = F.relu(self.dense1(F.relu(self.dense0(x))))
        return self.head(x)


def make_model(item: Item) -> nn.Module:
    """The network with the weights that all contenders start from."""
    weights = weights_of(item)
    model: nn.Module
    if item.kind == "sinusoid":
        model = MLP(weights)
    else:
        num_outputs = item.way if item.kind == "maml" else None
        model = Conv4(is_strided=item.pooling == "stride", num_outputs=num_outputs)
    with torch.no_grad():
        for name, kernel in weights.items():
            layer = model.get_submodule(name)
            if kernel.ndim == 4:
                kernel = _flipped(item, kernel, (0, 1)).transpose(3, 2, 0, 1)
            else:
                kernel = kernel.T
            layer.weight.copy_(torch.from_numpy(kernel.copy()))
            layer.bias.zero_()
    return model


def make_tasks(item: Item) -> list[Task]:
    """Support inputs and labels, query inputs and labels, for each task."""
    data = data_of(item)
    if item.kind != "sinusoid":
        for name in ("support_x", "query_x"):
            images = _flipped(item, data[name], (2, 3)).transpose(0, 1, 4, 2, 3)
            data[name] = np.ascontiguousarray(images)
        for name in ("support_y", "query_y"):
            data[name] = data[name].astype(np.int64)
    names = ("support_x", "support_y", "query_x", "query_y")
    return list(zip(*(torch.from_numpy(data[name]) for name in names), strict=True))


def _flipped(item: Item, array: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    """Turned by 180 degrees, with strides.

    Of an even size, "same" padding with a stride of 2 drops into the last row, and
    `padding=1` into the first. Turning images and kernels makes the one the other, so
    that PyTorch does the same mathematics without a pass that pads.
    """
    return np.flip(array, axes) if item.pooling == "stride" else array


def each(
    tasks: list[Task], losses: Callable[[Task], Iterator[torch.Tensor]]
) -> Callable[[], float]:
    """Backward through one task after the other; gives the mean loss.

    `losses` yields the loss of one task, and is left after the backward pass.
    """

    def backward() -> float:
        total = torch.zeros(())
        for task in tasks:
            for loss in losses(task):
                (loss / len(tasks)).backward()
                total += loss.detach()
        return float(total) / len(tasks)

    return backward


def with_learn2learn(
    item: Item, model: nn.Module, tasks: list[Task], loss: Loss, *, first_order: bool
) -> Callable[[], float]:
    """MAML by learn2learn."""
    learn2learn = import_learn2learn()
    maml = learn2learn.algorithms.MAML(
        model, lr=item.inner_rate, first_order=first_order
    )

    def losses(task: Task) -> Iterator[torch.Tensor]:
        support_x, support_y, query_x, query_y = task
        learner = maml.clone()
        for _ in range(item.inner_steps):
            learner.adapt(loss(learner(support_x), support_y))
        yield loss(learner(query_x), query_y)

    return each(tasks, losses)


def with_higher(
    item: Item, model: nn.Module, tasks: list[Task], loss: Loss, *, first_order: bool
) -> Callable[[], float]:
    """MAML by higher."""
    del first_order
    higher = importlib.import_module("higher")
    inner = torch.optim.SGD(model.parameters(), lr=item.inner_rate)

    def losses(task: Task) -> Iterator[torch.Tensor]:
        support_x, support_y, query_x, query_y = task
        loop = higher.innerloop_ctx(model, inner, copy_initial_weights=False)
        with loop as (learner, optimizer):
            for _ in range(item.inner_steps):
                optimizer.step(loss(learner(support_x), support_y))
            yield loss(learner(query_x), query_y)

    return each(tasks, losses)


def with_torchopt(
    item: Item, model: nn.Module, tasks: list[Task], loss: Loss, *, first_order: bool
) -> Callable[[], float]:
    """MAML by TorchOpt."""
    del first_order
    torchopt = importlib.import_module("torchopt")
    inner = torchopt.MetaSGD(model, lr=item.inner_rate)
    start = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
    inner_start = torchopt.extract_state_dict(inner, by="reference")

    def losses(task: Task) -> Iterator[torch.Tensor]:
        support_x, support_y, query_x, query_y = task
        for _ in range(item.inner_steps):
            inner.step(loss(model(support_x), support_y))
        yield loss(model(query_x), query_y)
        torchopt.recover_state_dict(model, start)
        torchopt.recover_state_dict(inner, inner_start)

    return each(tasks, losses)


def with_prototypes(model: nn.Module) -> Callable[[Task], Iterator[torch.Tensor]]:
    """Prototypical Networks with learn2learn's classifier."""
    classifier = import_learn2learn().nn.PrototypicalClassifier()

    def losses(task: Task) -> Iterator[torch.Tensor]:
        support_x, support_y, query_x, query_y = task
        classifier.fit_(model(support_x), support_y)
        yield F.cross_entropy(classifier(model(query_x)), query_y)

    return losses


def with_func(
    item: Item, model: nn.Module, tasks: list[Task], loss: Loss
) -> Callable[[], float]:
    """Either method as a function, mapped over all tasks at once."""
    stacked = [torch.stack(arrays) for arrays in zip(*tasks, strict=True)]
    parameters = dict(model.named_parameters())
    Params = dict[str, torch.Tensor]

    def apply(params: Params, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, params, (x,))

    def maml(params: Params, *task: torch.Tensor) -> torch.Tensor:
        support_x, support_y, query_x, query_y = task
        gradient = torch.func.grad(lambda p: loss(apply(p, support_x), support_y))
        for _ in range(item.inner_steps):
            grads = gradient(params)
            params = {k: v - item.inner_rate * grads[k] for k, v in params.items()}
        return loss(apply(params, query_x), query_y)

    def prototypical(params: Params, *task: torch.Tensor) -> torch.Tensor:
        support_x, support_y, query_x, query_y = task
        one_hot = torch.eye(item.way)[support_y]
        centers = one_hot.T @ apply(params, support_x) / one_hot.sum(0)[:, None]
        queries = apply(params, query_x)
        logits = 2 * queries @ centers.T - centers.square().sum(1)
        return loss(logits, query_y)

    task_loss = prototypical if item.kind == "prototypical" else maml

    def mean_loss(params: Params) -> torch.Tensor:
        in_dims = (None, 0, 0, 0, 0)
        return torch.func.vmap(task_loss, in_dims)(params, *stacked).mean()

    def backward() -> float:
        grads, mean = torch.func.grad_and_value(mean_loss)(parameters)
        for name, parameter in parameters.items():
            parameter.grad = grads[name].detach()
        return float(mean)

    return backward


def part(item: Item) -> Step:
    """Products, or a convolution and its gradients, of one task after the other."""
    own, shared = (torch.from_numpy(array) for array in parts_of(item))
    if item.kind == "convolution":
        own = own.permute(0, 1, 4, 2, 3).contiguous().requires_grad_()
        shared = shared.permute(3, 2, 0, 1).contiguous().requires_grad_()

    def of_task(x: torch.Tensor) -> torch.Tensor:
        if item.kind == "product":
            return (x @ shared).square().mean()
        value = F.conv2d(x, shared, padding=1).square().mean() / 2
        torch.autograd.grad(value, (x, shared))
        return value.detach()

    def step(count: int) -> float:
        for _ in range(count):
            values = [of_task(x) for x in own]
        return float(torch.stack(values).mean())

    return step


def sampling(item: Item) -> Step:
    """learn2learn's task data set over images in memory."""
    data = import_learn2learn().data
    images = torch.from_numpy(images_of().astype(np.float32) / 255)
    columns = images.shape[1]
    flat = images.flatten(0, 1).permute(0, 3, 1, 2).contiguous()
    labels = [index // columns for index in range(len(flat))]

    class Images(torch.utils.data.Dataset):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return flat[index], labels[index]

        def __len__(self) -> int:
            return len(flat)

    dataset = data.MetaDataset(Images(), indices_to_labels=dict(enumerate(labels)))
    transforms = [
        data.transforms.FusedNWaysKShots(
            dataset, n=item.way, k=item.shot + item.num_queries
        ),
        data.transforms.LoadData(dataset),
        data.transforms.RemapLabels(dataset),
        data.transforms.ConsecutiveLabels(dataset),
    ]
    tasks = data.TaskDataset(dataset, task_transforms=transforms)

    def step(count: int) -> None:
        for _ in range(count * item.tasks):
            tasks.sample()

    return step


def import_learn2learn() -> Any:
    """Imports learn2learn."""
    return import_beside_torchvision("learn2learn")


def import_beside_torchvision(module: str) -> Any:
    """Imports a module, be it with a torchvision that was built for an accelerator.

    Beside a torch without one, torchvision's library of operators does not load, and
    it fails to describe them. They are declared here; none is ever used.
    """
    package = module.split(".")[0]
    while True:
        try:
            return importlib.import_module(module)
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not", str(error))
            if missing is None:
                raise
        _OPERATORS.define(f"{missing[1]}(Tensor boxes) -> Tensor")
        for name in list(sys.modules):
            if name.startswith(("torchvision", package)):
                del sys.modules[name]


_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
