"""What a person writes by hand for the jobs of learn.py: one process, or `torchrun` with DistributedDataParallel.

Tensors are in memory, rows are taken by index.

    torchrun --nproc-per-node 2 tests/bench/ddp.py mlp DATA.pt --epochs 3
"""
import argparse
import json
import os
import signal
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


class Tabular(nn.Module):
    "A small network on purpose: what is around the arithmetic shows."
    def __init__(self, features: int):
        super().__init__()
        widths = [features, 64, 32]
        hidden = [p for a, b in zip(widths, widths[1:]) for p in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(.1))]
        self.layers = nn.Sequential(*hidden, nn.Linear(32, 1))

    def forward(self, x): return self.layers(x)


class Images(nn.Module):
    "290 thousand parameters for 28 × 28 pixels in ten classes."
    def __init__(self):
        super().__init__()
        part = lambda a, b: (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        self.layers = nn.Sequential(*part(1, 32), *part(32, 64), *part(64, 128), nn.Flatten(),
                                    nn.Linear(128*9, 160), nn.ReLU(), nn.Linear(160, 10))

    def forward(self, x): return self.layers(x)


def network(kind: str, x) -> nn.Module: return Tabular(x.shape[1]) if kind == "mlp" else Images()

def loss_of(z, y): return F.cross_entropy(z, y) if z.shape[1] > 1 else F.binary_cross_entropy_with_logits(z[:, 0], y)


def learn(kind: str, data: str, epochs: int, batch: int, every: int = 0, folder: str = "", kill: int = 0) -> dict:
    """Rows a second after the first epoch, and when the first step had been done; `kill` ends the last rank in that
    step of its first life."""
    known = (("RANK", 0), ("WORLD_SIZE", 1), ("TORCHELASTIC_RESTART_COUNT", 0))
    rank, ranks, life = (int(os.environ.get(name, default)) for name, default in known)
    x, y = torch.load(data, mmap=True)
    x, y, rows = x[rank::ranks].clone(), y[rank::ranks].clone(), len(x)//ranks*ranks
    torch.manual_seed(0)
    model = network(kind, x)
    if "RANK" in os.environ and not dist.is_initialized(): dist.init_process_group("gloo")
    net = nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer, step, first, ends, kept = torch.optim.AdamW(model.parameters(), 1e-3), 0, None, [], f"{folder}/kept.pt"
    if every and os.path.exists(kept):
        state = torch.load(kept)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    began = step
    share, mine = batch//ranks, rows//ranks
    steps = -(-mine//share)
    for epoch in range(step//steps, epochs):
        order, total = torch.randperm(mine, generator=torch.Generator().manual_seed(epoch)), 0.
        for k in range(step % steps, steps):
            if kill and step + 1 == kill and life == 0 and rank == ranks - 1: die(folder)
            take = order[k*share:(k + 1)*share]
            loss = loss_of(net(x[take]), y[take])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, step, first = total + loss.item(), step + 1, first or time.time()
            if every and step % every == 0 and rank == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, kept + ".new")
                os.replace(kept + ".new", kept)
        ends.append(time.perf_counter())
    rate = rows*(len(ends) - 1)/(ends[-1] - ends[0]) if len(ends) > 1 else None
    return {"rate": rate, "first": first, "began": began, "rank": rank}


def die(folder: str) -> None:
    "This process ends here and now, and its last words are the time."
    with open(f"{folder}/killed", "w") as f: f.write(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("kind", choices=["mlp", "cnn"])
    p.add_argument("data")
    p.add_argument("--epochs", type=int, required=True)
    p.add_argument("--batch", type=int, required=True)
    p.add_argument("--every", type=int, default=0)
    p.add_argument("--kill", type=int, default=0)
    p.add_argument("--folder", default="")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    said = learn(a.kind, a.data, a.epochs, a.batch, a.every, a.folder, a.kill)
    if said["rank"] == 0: print(json.dumps(said), flush=True)
    if dist.is_initialized(): dist.destroy_process_group()
