"""Adam in a rotated basis, on stacks of matrices: the parts of SOAP (`soap.py`, whose letters these are)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.optim.bases import NoBasis, eigenbasis, turned
from thalweg.optim.frames import directions, first, followed, is_leading, joined, split
from thalweg.optim.stacks import PIECE, Stack, size

FLOOR = 1e-3
"""r: of the root mean square of √V̂, what is added to each."""
ASPECT = 16
"""A side that is so many times as long as the other gets no basis of all directions, which would be dear for what each
gradient tells of them. Not less: in an autoencoder whose layers have aspects of 4 and 8, half of the gain came from the
long sides. Where they are too dear, the budget leaves them out.
"""
LONGEST = {"cpu": 1024}
"""The longest side that gets a basis of all directions; 4096 on other devices."""
SIDES = ("left", "right")
DIM = {"left": -2, "right": -1}


def sides(p: nn.Parameter, rank: int | None) -> tuple[str, ...]:
    """The sides of a matrix that may have a basis: both, unless all are to have all directions (`rank` None)."""
    m, n = size(p)
    if rank is not None:
        return SIDES
    longest = LONGEST.get(p.device.type, 4096)
    if min(m, n) > longest:
        return ()
    if max(m, n) <= longest and max(m, n) < ASPECT * min(m, n):
        return SIDES
    return ("left",) if m < n else ("right",)


def used(stack: Stack) -> list[str]:
    """The sides that have a basis."""
    return [side for side in SIDES if side in stack.tensors]


def refreshed(stack: Stack) -> list[str]:
    """Those whose basis is of all directions, which is turned apart from its statistics."""
    return [side for side in used(stack) if not is_leading(stack.tensors[f"{side}_basis"])]


def begun(kept: dict[str, Any], G: Tensor, β: float, rank: int | None, chosen: Iterable[str]) -> bool:
    """Take a gradient `[m, n]` into the statistics of some sides, which have no basis of all directions yet.

    Returns:
        Whether a decomposition failed.
    """
    failed = False
    for side in chosen:
        g = G if side == "left" else G.mT
        k = directions(len(g), rank)
        if kept[side].ndim == 2 if side in kept else k == len(g):  # as it was begun, maybe by an older version
            if side not in kept:
                kept[side] = torch.zeros(k, k, dtype=g.dtype, device=g.device)
            kept[side].addmm_(g, g.mT, beta=β, alpha=1 - β)
            continue
        if side in kept:
            old = kept[side].unsqueeze(0), kept[f"{side}_basis"].unsqueeze(0)
            values, Q, _, well = followed(*old, g.unsqueeze(0), β)
        else:
            values, Q, well = first(g.unsqueeze(0), k, 1 - β)
        kept[side], kept[f"{side}_basis"] = values[0], Q[0]
        failed |= not well
    return failed


def settled(kept: Mapping[str, Any], chosen: Sequence[str]) -> tuple[dict[str, Tensor], bool]:
    """The bases of some sides and what AdamW has kept, brought into them; and whether a decomposition failed."""
    M, V = kept["exp_avg"].flatten(1), kept["exp_avg_sq"].flatten(1)
    sums, found, failed = {"left": V.sum(1), "right": V.sum(0)}, {}, False
    for side in chosen:
        if (values := kept[side]).ndim == 1:
            Q = kept[f"{side}_basis"]
            rest = sums[side] - (Q.square() * values).sum(-1)
            sums[side] = torch.cat([values, rest]).clamp_min_(0.0)
        else:
            try:
                sums[side], Q = eigenbasis(values)
            except NoBasis:
                failed, Q = True, torch.eye(len(values)).to(values)
        found[f"{side}_basis"] = Q
    M = projected(M.unsqueeze(0), {side: found[f"{side}_basis"].unsqueeze(0) for side in chosen})[0]
    rows = sums["left"] / sums["left"].sum().clamp_min(torch.finfo(V.dtype).tiny)
    return found | {"momentum": M.contiguous(), "variance": torch.outer(rows, sums["right"])}, failed


def direction(stack: Stack, G: Tensor) -> tuple[Tensor, float]:
    """Take in a gradient `[matrices, m, n]`; the step U against it, but for a factor, and this factor."""
    (β1, β2), t = stack.group["betas"], stack.step
    M, V = stack.tensors["momentum"], stack.tensors["variance"]
    multiplied = arithmetic(stack)
    bases = {side: stack.cast(f"{side}_basis", multiplied) for side in used(stack)}
    G = projected(G.to(multiplied), bases).contiguous()
    squares = torch.linalg.vector_norm(G.flatten(1), dim=1, keepdim=True, dtype=V.dtype).square_()
    means = squares.mul_(1 - β2).add_(V.flatten(1).sum(1, keepdim=True), alpha=β2).div_(V[0].numel())  # of the new V
    root = (1 - β2**t) ** 0.5  # the corrections for t, taken out of the tensors
    for g, m, v in pieces(G, M, V):
        new = g.to(m.dtype)
        m.lerp_(new, 1 - β1)
        v.mul_(β2).addcmul_(new, new, value=1 - β2)
        g.copy_(torch.div(m, damped(v, means, stack.group["eps"] * root), out=new))
    return projected(G, bases, back=True), root / (1 - β1**t)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of tensors `[matrices, …]`, the parts `[matrices, some]` that together fit a processor's cache, side by side.

    What is done to each part one thing after another never leaves it; elsewhere all at once.
    """
    one = tensors[0]
    width = max(1, PIECE // len(one)) if one.device.type == "cpu" else one[0].numel()
    return zip(*(t.flatten(1).split(width, 1) for t in tensors), strict=True)


def arithmetic(stack: Stack) -> torch.dtype:
    """What projections are multiplied in."""
    return torch.bfloat16 if stack.kept[0]["choice"].endswith("bfloat16") else stack.tensors["momentum"].dtype


def damped(V: Tensor, mean: Tensor, ε: float) -> Tensor:
    """√V + ε + r·rms, for rms the root of each matrix's mean V."""
    return V.sqrt().add_(mean.sqrt().mul_(FLOOR).add_(ε))


def projected(G: Tensor, bases: Mapping[str, Tensor], back: bool = False) -> Tensor:
    """QₗᵀG Qᵣ, or back: Qₗ G Qᵣᵀ; a side without a basis stays, one of leading directions goes into their frame.

    The way back may be made in the memory of G.
    """
    for side, Q in bases.items():
        if is_leading(Q):
            G = (joined if back else split)(G, Q, DIM[side])
        elif side == "left":
            G = product(Q if back else Q.mT, G)
        else:
            G = product(G, Q.mT if back else Q)
    return G


def product(a: Tensor, b: Tensor) -> Tensor:
    """Of two stacks; a single pair is multiplied faster as matrices than as a batch."""
    return a @ b if len(a) > 1 else (a[0] @ b[0]).unsqueeze(0)


def learn(stack: Stack, G: Tensor) -> bool:
    """Statistics of rows and columns, and new leading directions; whether a decomposition failed."""
    β, well = stack.group["betas"][1] ** stack.group["statistics_period"], []
    for side in used(stack):
        g = G if side == "left" else G.mT
        if is_leading(stack.tensors[f"{side}_basis"]):
            well.append(_follow(stack, side, g, β))
        else:
            stack.tensors[side].baddbmm_(g, g.mT, beta=β, alpha=1 - β)
    return bool(well) and not bool(torch.stack(well).all())


def _follow(stack: Stack, side: str, g: Tensor, β: float) -> Tensor:
    """Leading directions after a gradient, and what lies in their frame; for which matrices they could be found."""
    values, Q, M, V = (stack.tensors[name] for name in (side, f"{side}_basis", "momentum", "variance"))
    found, basis, order, well = followed(values, Q, g, β)
    M.copy_(split(joined(M, Q, DIM[side]), basis, DIM[side]))
    lead = V.narrow(DIM[side], 0, order.shape[-1])
    order = order.unsqueeze(-1 if side == "left" else -2).expand_as(lead)
    lead.copy_(lead.gather(DIM[side], order))
    values.copy_(found)
    Q.copy_(basis)
    return well


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
