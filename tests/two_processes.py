"""What each of two processes of a test runs: a few steps on a parabola, its pieces its own; prints
the weight it ends with.
"""

import torch
from torch import nn

from rayunlearn.train.loop import optimise
from rayunlearn.train.step import StepLoss


def main() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    seen: list[int] = []

    def loss(piece: int) -> StepLoss:
        seen.append(piece)
        return StepLoss((model.weight - piece).square().sum())

    log = optimise(
        model,
        loss,
        steps=3,
        learning_rate=0.5,
        schedule="constant",
        warmup_fraction=0.0,
        max_grad_norm=1e9,
    )
    print(f"{seen} {float(model.weight.detach())!r} {[row.grad_norm for row in log.rows]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
