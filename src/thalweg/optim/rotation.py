"""Adam in a rotated basis, on stacks of matrices: the parts of SOAP (`soap.py`, whose letters these are)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.optim.bases import NoBasis, eigenbasis, turned
from thalweg.optim.stacks import Stack, size

FLOOR = 1e-3
"""r: of the root mean square of √V̂, what is added to each."""
ASPECT = 16
"""A side that is so many times as long as the other has no basis: each gradient tells of few of its directions. Not
less: in an autoencoder whose layers have aspects of 4 and 8, half of the gain came from the long sides. Where they are
too dear, the budget leaves them out.
"""
LONGEST = {"cpu": 1024}
"""The longest side that gets a basis; 4096 on other devices."""
SIDES = ("left", "right")


def sides(p: nn.Parameter) -> tuple[str, ...]:
    """The sides of a matrix that may have a basis."""
    m, n = size(p)
    longest = LONGEST.get(p.device.type, 4096)
    if min(m, n) > longest:
        return ()
    if max(m, n) <= longest and max(m, n) < ASPECT * min(m, n):
        return SIDES
    return ("left",) if m < n else ("right",)


def used(stack: Stack) -> list[str]:
    """The sides that have a basis."""
    return [side for side in SIDES if side in stack.tensors]


def settled(kept: Mapping[str, Any], chosen: Iterable[str]) -> tuple[dict[str, Tensor], bool]:
    """The bases of some sides and what AdamW has kept, brought into them; and whether a decomposition failed."""
    M, V = kept["exp_avg"].flatten(1), kept["exp_avg_sq"].flatten(1)
    sums, found, failed = {"left": V.sum(1), "right": V.sum(0)}, {}, False
    for side in chosen:
        try:
            sums[side], Q = eigenbasis(kept[side])
        except NoBasis:
            failed, Q = True, torch.eye(len(kept[side])).to(kept[side])
        found[f"{side}_basis"] = Q
        M = Q.mT @ M if side == "left" else M @ Q
    rows = sums["left"] / sums["left"].sum().clamp_min(torch.finfo(V.dtype).tiny)
    return found | {"momentum": M.contiguous(), "variance": torch.outer(rows, sums["right"])}, failed


def direction(stack: Stack, G: Tensor) -> tuple[Tensor, float]:
    """Take in a gradient `[matrices, m, n]`; the step U against it, but for a factor, and this factor."""
    (β1, β2), t = stack.group["betas"], stack.step
    M, V = stack.tensors["momentum"], stack.tensors["variance"]
    multiplied = arithmetic(stack)
    bases = {side: stack.cast(f"{side}_basis", multiplied) for side in used(stack)}
    G = projected(G.to(multiplied), bases)
    means = torch.zeros(len(V), 1, 1, dtype=V.dtype, device=V.device)
    for piece in stack.pieces():
        g = G[piece].to(M.dtype)
        M[piece].lerp_(g, 1 - β1)
        v = V[piece].mul_(β2).addcmul_(g, g, value=1 - β2)
        means[piece[0]] += v.sum((-2, -1), keepdim=True)
    means /= V[0].numel()
    root = (1 - β2**t) ** 0.5  # the corrections for t, taken out of the tensors
    for piece in stack.pieces():
        G[piece] = M[piece] / damped(V[piece], means[piece[0]], stack.group["eps"] * root)
    return projected(G, bases, back=True), root / (1 - β1**t)


def arithmetic(stack: Stack) -> torch.dtype:
    """What projections are multiplied in."""
    return torch.bfloat16 if stack.kept[0]["choice"].endswith("bfloat16") else stack.tensors["momentum"].dtype


def damped(V: Tensor, mean: Tensor, ε: float) -> Tensor:
    """√V + ε + r·rms, for rms the root of each matrix's mean V `[matrices, 1, 1]`."""
    return V.sqrt().add_(mean.sqrt().mul_(FLOOR).add_(ε))


def projected(G: Tensor, bases: Mapping[str, Tensor], back: bool = False) -> Tensor:
    """QₗᵀG Qᵣ, or back: Qₗ G Qᵣᵀ; a side without a basis stays."""
    if "left" in bases:
        G = product(bases["left"] if back else bases["left"].mT, G)
    if "right" in bases:
        G = product(G, bases["right"].mT if back else bases["right"])
    return G


def product(a: Tensor, b: Tensor) -> Tensor:
    """Of two stacks; a single pair is multiplied faster as matrices than as a batch."""
    return a @ b if len(a) > 1 else (a[0] @ b[0]).unsqueeze(0)


def learn(stack: Stack, G: Tensor) -> None:
    """Statistics of rows and columns."""
    β = stack.group["betas"][1] ** stack.group["statistics_period"]
    for side in used(stack):
        g = G if side == "left" else G.mT
        stack.tensors[side].baddbmm_(g, g.mT, beta=β, alpha=1 - β)


def refresh(stack: Stack, due: Mapping[str, slice]) -> bool:
    """Turn the bases of some matrices, and what lies in them; whether a decomposition failed."""
    failed = False
    for side, part in due.items():
        for i in range(len(stack.parameters))[part]:
            Q, M, V = (stack.tensors[name][i] for name in (f"{side}_basis", "momentum", "variance"))
            try:
                new = turned(stack.tensors[side][i], Q, stack.group["tolerance"])
            except NoBasis:
                failed = True
                continue
            if new is None:
                continue
            order, basis = new
            old, fresh, m = (t.to(arithmetic(stack)) for t in (Q, basis, M))
            M.copy_((fresh.mT @ old) @ m if side == "left" else m @ (old.mT @ fresh))
            V.copy_(V.index_select(0 if side == "left" else 1, order))
            Q.copy_(basis)
    return failed
