"""SOAP (of all directions, of the leading ones) and Muon by the letter, one matrix at a time, in numpy and float64.

SOAP keeps its momentum outside of the basis and projects it in every step, as in the paper.
"""

from __future__ import annotations

import numpy as np


class SlowAdamW:
    def __init__(self, W, lr, betas, eps, weight_decay):
        self.W, self.lr, self.betas, self.eps, self.weight_decay = W.copy(), lr, betas, eps, weight_decay
        self.m, self.s, self.t = np.zeros_like(W), np.zeros_like(W), 0

    def move(self, U, share=1.0):
        rate = share * self.lr
        self.W = (1 - rate * self.weight_decay) * self.W - rate * U

    def step(self, G, share=1.0):
        self.t += 1
        β1, β2 = self.betas
        self.m = β1 * self.m + (1 - β1) * G
        self.s = β2 * self.s + (1 - β2) * G**2
        self.move(self.m / (1 - β1**self.t) / (np.sqrt(self.s / (1 - β2**self.t)) + self.eps), share)


class Turned(SlowAdamW):
    """AdamW in other coordinates, `into` which a matrix is brought; momentum stays outside."""

    def quotient(self, G):
        β1, β2 = self.betas
        self.t += 1
        self.m = β1 * self.m + (1 - β1) * G
        self.s = β2 * self.s + (1 - β2) * self.into(G) ** 2
        root = np.sqrt(self.s / (1 - β2**self.t))
        return self.into(self.m / (1 - β1**self.t)) / (root + self.eps + self.floor * np.sqrt((root**2).mean()))


class SlowSOAP(Turned):
    """`sides` has the number of each side that gets a basis, by which its turn among all is told."""

    def __init__(self, W, sides, floor=1e-3, start=10, period=10, statistics_period=5, tolerance=0.1, **adamw):
        super().__init__(W, **adamw)
        self.sides, self.floor, self.start = sides, floor, start
        self.period, self.statistics_period, self.tolerance = period, statistics_period, tolerance
        m, n = W.shape
        self.F = {"left": np.zeros((m, m)), "right": np.zeros((n, n))}
        self.Q = {"left": np.eye(m), "right": np.eye(n)}
        self.turns = 0

    def into(self, A):
        return self.Q["left"].T @ A @ self.Q["right"]

    def learn(self, G, β):
        self.F["left"] = β * self.F["left"] + (1 - β) * G @ G.T
        self.F["right"] = β * self.F["right"] + (1 - β) * G.T @ G

    def step(self, G):
        β2 = self.betas[1]
        if self.t < self.start:
            super().step(G, share=0.1)
            self.learn(G, β2)
            if self.t == self.start:
                self.begin()
            return
        U = self.quotient(G)
        self.move(self.Q["left"] @ U @ self.Q["right"].T)
        if self.t % self.statistics_period == 0:
            self.learn(G, β2**self.statistics_period)
        for side, number in self.sides.items():
            if (self.t - number) % self.period == 0:
                self.turn(side)

    def begin(self):
        sums = {"left": self.s.sum(1), "right": self.s.sum(0)}
        for side in self.sides:
            values, vectors = np.linalg.eigh(self.F[side])
            self.Q[side], sums[side] = vectors[:, ::-1], values[::-1].clip(0)
        self.s = np.outer(sums["left"], sums["right"]) / max(sums["left"].sum(), 1e-300)

    def turn(self, side):
        F, Q = self.F[side], self.Q[side]
        D = Q.T @ F @ Q
        if np.linalg.norm(D - np.diag(np.diag(D))) <= self.tolerance * np.linalg.norm(F):
            return
        self.turns += 1
        order = np.argsort(-np.diag(D), kind="stable")
        self.Q[side] = np.linalg.qr((F @ Q)[:, order])[0]
        self.s = self.s[order] if side == "left" else self.s[:, order]


class SlowLeadingSOAP(Turned):
    """SOAP with leading directions; `drawn` has the first ones of each side, whose statistics are made in full.

    What is left of a statistic beside its leading directions is left out of it.
    """

    def __init__(self, W, drawn, floor=1e-3, start=10, statistics_period=5, iterations=3, shift=1e-5, **adamw):
        super().__init__(W, **adamw)
        self.shift = shift
        self.floor, self.start, self.statistics_period, self.iterations = floor, start, statistics_period, iterations
        self.Q = {side: np.linalg.qr(directions)[0] for side, directions in drawn.items()}
        self.values = {side: np.zeros(Q.shape[1]) for side, Q in self.Q.items()}

    def frame(self, side):
        return np.hstack([self.Q[side], np.eye(len(self.Q[side])) - self.Q[side] @ self.Q[side].T])

    def into(self, A):
        return self.frame("left").T @ A @ self.frame("right")

    def follow(self, G, β):
        for side in self.values:
            g, Q = G if side == "left" else G.T, self.Q[side]
            F = β * Q @ np.diag(self.values[side]) @ Q.T + (1 - β) * g @ g.T
            values = np.diag(Q.T @ F @ Q)
            order = np.argsort(-values, kind="stable")
            self.Q[side] = np.linalg.qr((F @ Q / values.max() + self.shift * Q)[:, order])[0]
            self.values[side] = values[order]
            if self.t > self.start:
                lead = order.tolist()
                if side == "left":
                    self.s[: len(lead)] = self.s[lead]
                else:
                    self.s[:, : len(lead)] = self.s[:, lead]

    def step(self, G):
        β2 = self.betas[1]
        if self.t < self.start:
            super().step(G, share=0.1)
            if self.t == 1:
                for _ in range(self.iterations):
                    self.follow(G, 0.0)
                self.values = {side: values * (1 - β2) for side, values in self.values.items()}
            else:
                self.follow(G, β2)
            if self.t == self.start:
                self.begin()
            return
        U = self.quotient(G)
        self.move(self.frame("left") @ U @ self.frame("right").T)
        if self.t % self.statistics_period == 0:
            self.follow(G, β2**self.statistics_period)

    def begin(self):
        left, right = self.sums("left", self.s.sum(1)), self.sums("right", self.s.sum(0))
        self.s = np.outer(left, right) / left.sum()

    def sums(self, side, total):
        rest = total - (self.Q[side] ** 2) @ self.values[side]
        return np.concatenate([self.values[side], rest]).clip(0)


class SlowMixedSOAP(SlowLeadingSOAP):
    """Leading directions on the side that `drawn` names, all of them on the other."""

    def __init__(self, W, drawn, period, tolerance, **others):
        super().__init__(W, drawn, **others)
        self.period, self.tolerance, self.turns = period, tolerance, 0
        (self.whole,) = {"left", "right"} - set(drawn)
        d = W.shape[self.whole == "right"]
        self.F, self.Q[self.whole] = np.zeros((d, d)), np.eye(d)

    def frame(self, side):
        return self.Q[side] if side == self.whole else super().frame(side)

    def step(self, G):
        g, β2, begins = G if self.whole == "left" else G.T, self.betas[1], self.t < self.start
        if begins:
            self.F = β2 * self.F + (1 - β2) * g @ g.T
        super().step(G)
        if begins:
            return
        if self.t % self.statistics_period == 0:
            self.F = β2**self.statistics_period * self.F + (1 - β2**self.statistics_period) * g @ g.T
        if self.t % self.period == 0:
            self.turn()

    def sums(self, side, total):
        if side != self.whole:
            return super().sums(side, total)
        values, vectors = np.linalg.eigh(self.F)
        self.Q[side] = vectors[:, ::-1]
        return values[::-1].clip(0)

    def turn(self):
        Q = self.Q[self.whole]
        D = Q.T @ self.F @ Q
        if np.linalg.norm(D - np.diag(np.diag(D))) <= self.tolerance * np.linalg.norm(self.F):
            return
        self.turns += 1
        order = np.argsort(-np.diag(D), kind="stable")
        self.Q[self.whole] = np.linalg.qr((self.F @ Q)[:, order])[0]
        self.s = self.s[order] if self.whole == "left" else self.s[:, order]


class SlowMuon(SlowAdamW):
    def __init__(self, W, coefficients, margin, momentum=0.95, **adamw):
        super().__init__(W, **adamw)
        self.coefficients, self.margin, self.momentum = coefficients, margin, momentum
        self.v = np.zeros((len(W), 1))

    def step(self, G):
        μ, β2 = self.momentum, self.betas[1]
        self.m = μ * self.m + (1 - μ) * G
        O = self.orthogonal(μ * self.m + (1 - μ) * G)  # noqa: E741
        self.v = β2 * self.v + (1 - β2) * (O**2).mean(1, keepdims=True)
        even = O / np.sqrt(self.v)
        self.move(0.2 * np.sqrt(max(G.shape)) * even * np.linalg.norm(O) / np.linalg.norm(even))

    def orthogonal(self, U):
        if U.shape[0] > U.shape[1]:
            return self.orthogonal(U.T).T
        X = U / np.sqrt(self.margin * np.linalg.norm(U @ U.T))
        for a, b, c in self.coefficients:
            A = X @ X.T
            X = a * X + (b * A + c * A @ A) @ X
        return X
