"""Load-balanced stochastic length (LBSL): every rank truncates as many histories as brings it to the common load.

Stochastic length throws a coin per request, so that the load of a rank, the sum of n^gamma over its requests, is the
luck of its batch, and a step lasts as long as the unluckiest rank. LBSL keeps SL's mean load but shares it out evenly.
With b requests on this rank, cut length l and target load t, it walks through the requests in a random order in which
those that SL would rather keep whole come first, and keeps a request whole if the budget still allows it:

    spent + (n^gamma - l^gamma) <= t - b l^gamma

The walk never stops early, so a shorter request may still fit where a longer one did not. All others are cut to l. The
target is the mean load that SL would give per rank and step; ranks agree on it by one sum now and then (LoadBalancer).

The paper leaves open, and here it is so: the order's weights are SL's probabilities of staying whole; whoever is not
kept whole is cut for certain, since a second coin would exceed the target; a recalibration divides by the steps since
the last one; a request of at most l events costs a negative increment, so it always fits into a budget that is not
overdrawn and leaves room for others; the load of SL is its mean over the coin (`expected_loads`).

Exact fill is ours, not the paper's: whole histories are coarse when a rank has few requests, so what the walk left of
the budget goes to the first requests of the order that were cut, the last of which keeps a part of its history.

Legend: B requests of this rank, G of all ranks, S streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from model.training.stochastic_length import (
    expected_loads,
    keep_probability,
    loads,
    sampling_length,
    stochastic_lengths,
)
from model.training.train_config import SamplingConfig

SumOverRanks = Callable[[np.ndarray], np.ndarray]


def weighted_order(weight_B: np.ndarray, exponential_B: np.ndarray) -> np.ndarray:
    """A random permutation in which each next element is drawn with probability proportional to its weight.

    The smallest of independent exponentials with rates w belongs to element i with probability w_i / sum w, and what is
    left is again such a race.

    Args:
        weight_B: (B,) positive.
        exponential_B: (B,) draws of the standard exponential distribution.

    Returns:
        (B,) int64 positions, first drawn first.
    """
    return np.argsort(exponential_B / weight_B, kind="stable")


def lbsl_lengths(
    length_B: np.ndarray, order_B: np.ndarray, *, target: float, cut: int, gamma: float, exact_fill: bool
) -> np.ndarray:
    """How many of its newest events each history keeps, by Algorithm 1 of the paper.

    Args:
        length_B: (B,) history lengths.
        order_B: (B,) permutation in which requests are offered to stay whole.
        target: load that the rank should have.
        cut: the length that histories are cut to.
        gamma: exponent of the load.
        exact_fill: spend what is left of the budget on parts of histories.

    Returns:
        (B,) int64.
    """
    cut_load = float(cut) ** gamma
    increments = (loads(length_B, gamma) - cut_load).tolist()
    budget = target - length_B.size * cut_load
    spent, whole = 0.0, []
    order = order_B.tolist()
    for request in order:
        if spent + increments[request] <= budget:
            spent += increments[request]
            whole.append(request)
    kept_B = np.minimum(length_B, cut).astype(np.int64)
    kept_B[whole] = length_B[whole]
    if exact_fill:
        _fill(kept_B, length_B, order, room=budget - spent, gamma=gamma)
    return kept_B


def _fill(kept_B: np.ndarray, length_B: np.ndarray, order: list[int], *, room: float, gamma: float) -> None:
    """Lengthens cut histories in order until the room is spent; at most the last one stays partial."""
    for request in order:
        kept, length = int(kept_B[request]), int(length_B[request])
        if room <= 0 or kept == length:
            continue
        fits = min(length, int((kept**gamma + room) ** (1 / gamma)))
        kept_B[request] = fits
        if fits < length:
            return
        room -= length**gamma - kept**gamma


@dataclass(frozen=True)
class BalancerState:
    """Where the balancer stands after `step` batches.

    Attributes:
        step: batches decided so far.
        target_S: load that a rank should have, per stream.
        load_S: loads that SL would have given this rank since the last recalibration.
        num_accumulated: batches in load_S.
    """

    step: int
    target_S: tuple[float, ...]
    load_S: tuple[float, ...]
    num_accumulated: int


def initial_state(num_streams: int) -> BalancerState:
    """Before the first batch: no target, nothing accumulated."""
    return BalancerState(0, (0.0,) * num_streams, (0.0,) * num_streams, 0)


class LoadBalancer:
    """Decides batch by batch how much of each history stays, with SL or LBSL, each stream for itself.

    Decisions depend on the seed, the step, the place of a request in the batch of all ranks, and with LBSL on the
    target, so a run that resumes from its state decides as the uninterrupted one would.
    """

    def __init__(
        self,
        config: SamplingConfig,
        max_lengths: Sequence[int],
        *,
        seed: int,
        num_ranks: int = 1,
        sum_over_ranks: SumOverRanks = lambda load_S: load_S,
    ) -> None:
        """Starts at step 0.

        Args:
            config: train.sampling, of another kind than `none`.
            max_lengths: N of each stream; a stream of 0 is left alone.
            seed: of the draws.
            num_ranks: how many share the load.
            sum_over_ranks: adds up an array over ranks; called at every recalibration, by all ranks alike.
        """
        self.state = initial_state(len(max_lengths))
        self._config = config
        self._max_lengths = tuple(max_lengths)
        self._seed = seed
        self._num_ranks = num_ranks
        self._sum_over_ranks = sum_over_ranks

    def decide(self, lengths: Sequence[np.ndarray], *, begin: int, num_requests: int) -> tuple[np.ndarray, ...]:
        """Lengths to keep of the next batch, and the step that follows.

        Args:
            lengths: per stream (B,) history lengths of this rank's requests, at most that stream's maximum.
            begin: where this rank's requests begin in the batch of all ranks.
            num_requests: G, requests of all ranks.

        Returns:
            per stream (B,) int64.
        """
        state = self.state
        step = state.step + 1
        kept = tuple(
            self._decide_stream(stream, length_B, step=step, begin=begin, num_requests=num_requests)
            for stream, length_B in enumerate(lengths)
        )
        load_S = tuple(
            load + self._expected(stream, length_B)
            for stream, (load, length_B) in enumerate(zip(state.load_S, lengths, strict=True))
        )
        self.state = self._recalibrated(BalancerState(step, state.target_S, load_S, state.num_accumulated + 1))
        return kept

    def _expected(self, stream: int, length_B: np.ndarray) -> float:
        max_length = self._max_lengths[stream]
        if max_length == 0:
            return 0.0
        config = self._config
        return float(expected_loads(length_B, max_length=max_length, alpha=config.alpha, gamma=config.gamma).sum())

    def _decide_stream(
        self, stream: int, length_B: np.ndarray, *, step: int, begin: int, num_requests: int
    ) -> np.ndarray:
        config, max_length = self._config, self._max_lengths[stream]
        if max_length == 0:
            return length_B.astype(np.int64)
        mine = slice(begin, begin + length_B.size)
        # Drawn for the requests of all ranks: a request's luck does not depend on how many ranks there are.
        rng = np.random.default_rng([self._seed, step, stream])
        if config.kind == "sl" or step <= config.warmup_steps:
            uniform_B = rng.random(num_requests)[mine]
            return stochastic_lengths(length_B, uniform_B, max_length=max_length, alpha=config.alpha)
        weight_B = keep_probability(length_B, max_length=max_length, alpha=config.alpha)
        order_B = weighted_order(weight_B, rng.standard_exponential(num_requests)[mine])
        return lbsl_lengths(
            length_B,
            order_B,
            target=self.state.target_S[stream],
            cut=sampling_length(max_length, config.alpha),
            gamma=config.gamma,
            exact_fill=config.exact_fill,
        )

    def _recalibrated(self, state: BalancerState) -> BalancerState:
        """The state with a new target, when it is time for one."""
        config = self._config
        due = state.step == config.warmup_steps or state.step % config.recalibrate_every == 0
        if config.kind == "sl" or not due:
            return state
        total_S = self._sum_over_ranks(np.array(state.load_S))
        target_S = total_S / (self._num_ranks * state.num_accumulated)
        return BalancerState(state.step, tuple(target_S.tolist()), (0.0,) * len(state.load_S), 0)

    def global_state(self, state: BalancerState, sum_over_ranks: SumOverRanks) -> np.ndarray:
        """(2 S + 2,) float64, a state of all ranks together, for a checkpoint; called by all ranks alike.

        Targets and loads are sums over ranks, so that another number of ranks can share them.
        """
        load_S = sum_over_ranks(np.array(state.load_S))
        target_S = np.array(state.target_S) * self._num_ranks
        return np.concatenate([[state.step, state.num_accumulated], target_S, load_S])

    def local_state(self, saved: np.ndarray) -> BalancerState:
        """This rank's share of what global_state gave, perhaps for another number of ranks."""
        step, num_accumulated, *sums = saved.tolist()
        share_S = [value / self._num_ranks for value in sums]
        num_streams = len(self._max_lengths)
        return BalancerState(
            int(step), tuple(share_S[:num_streams]), tuple(share_S[num_streams:]), int(num_accumulated)
        )
