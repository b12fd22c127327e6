"""The Square attack: random windows, kept where they lower the margin. No gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advfast.attacks import checks
from advfast.attacks.losses import ce, margin

from .base import Found, Points, SearchAttack, Watch, part_of
from .oracle import Oracle
from .square_block import ROWS_ON_CPU, Blocks, Left, Rated, ask_block, ask_one
from .square_draws import Draws, KeyedDraws, PublishedDraws
from .square_moves import Moves, Window
from .square_windows import image_sides, share, window_sides

LOSSES = ("margin", "ce")
_MOST_QUERIES = 2**31
_MOST_RESTARTS = 2**15


class Square(SearchAttack):
    """The Square attack, without gradients: what it breaks, a gradient attack that missed it has been misled.

    It begins at vertical stripes (l2, l1: a grid of patterns). Each query moves a window of the best image so far, one
    sign a channel, and keeps the candidate if the loss falls or the sample is misclassified. The window shrinks by a
    schedule. A sample that is misclassified is asked no more.

    Images of two axes [C, L] are one row high and vectors one channel of one row; what lies before the last two axes of
    a 5-d batch counts as channels. Where a square window would be larger than a side, it is as long in the other as its
    share of the image asks for (rng="upstream": it stays a square).

    Args:
        model, eps: as for `SearchAttack`.
        norm, seed, fold, precision, batch_size, output: as for `SearchAttack`.
        queries: candidates of a run; the start is one more pass.
        restarts: runs; a later one is for samples that the earlier ones left.
        p_init: share of the image that the first windows cover, above 0 and at most 1.
        loss: what a candidate must lower: "margin", z_y - max of the others, or "ce", minus the cross-entropy.
        rescale_schedule: the window shrinks as in a run of 10,000 queries, stretched to `queries`; False: query by
            query as there, as AutoAttack has it.
        rng: "philox": window and signs of each sample, keyed by (seed, sample id, query, restart); anywhere in the
            image. "upstream": one window for the whole batch, drawn as the published implementation does.
        impl: implementation of the linf window: "auto", "reference", "cpp", "triton".

    Raises:
        TypeError, ValueError: bad settings, here or (when changed later) at the call.

    Source: Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack via
    random search", ECCV 2020; l1: Croce and Hein, "Mind the box", ICML 2021.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float = 8 / 255,
        *,
        norm: str = "linf",
        queries: int = 5000,
        restarts: int = 1,
        p_init: float = 0.8,
        loss: str = "margin",
        rescale_schedule: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, norm=norm, **settings)
        self.queries = queries
        self.restarts = restarts
        self.p_init = p_init
        self.loss = loss
        self.rescale_schedule = rescale_schedule
        self.check()

    def check(self) -> None:
        for setting, most in (("queries", _MOST_QUERIES), ("restarts", _MOST_RESTARTS)):
            checks.check_count(setting, getattr(self, setting), 1)
            if getattr(self, setting) > most:
                raise ValueError(f"{setting} must be at most {most}, got {getattr(self, setting)}")
        checks.check_choice("loss", self.loss, LOSSES)
        if not 0 < self.p_init <= 1:
            raise ValueError(
                f"p_init is a share of the image, above 0 and at most 1, got {self.p_init}"
            )
        super().check()

    def search(self, oracle: Oracle, points: Points, watch: Watch | None = None) -> Found:
        if points.logits.shape[1] < 2:
            raise ValueError(
                f"{type(self).__name__}: the model must have 2 classes or more, got 1 logit"
            )
        found = Found(points.x.clone(), torch.zeros_like(points.labels, dtype=torch.bool))
        generator = torch.Generator().manual_seed(self.seed)
        for restart in range(self.restarts):
            left = (~found.success).nonzero()[:, 0]
            if not len(left):
                break
            part = points.selected(left)
            draws = self._draws(part, restart, generator)
            x, broken = self._run(
                oracle, part, draws, part_of(watch, restart / self.restarts, 1 / self.restarts)
            )
            hit = broken.nonzero()[:, 0]
            found.x[left[hit]], found.success[left[hit]] = x[hit], True
        if watch is not None:
            watch(1.0)
        return found

    def _draws(self, points: Points, restart: int, generator: torch.Generator) -> Draws:
        channels = image_sides(points.x.shape[1:])[0]
        norm = self.norm.lower()
        if self.rng == "upstream":
            return PublishedDraws(len(points), generator, channels, norm, points.x)
        return KeyedDraws(points.ids, self.seed, restart, channels, norm, points.x.dtype)

    def _run(
        self, oracle: Oracle, points: Points, draws: Draws, watch: Watch
    ) -> tuple[Tensor, Tensor]:
        """(images [n, ...], whether each is misclassified [n])."""
        shape = points.x.shape
        x0 = points.x if points.x.dim() == 4 else points.x.reshape(-1, *image_sides(shape[1:]))
        sides = image_sides(shape[1:])
        published = self.rng == "upstream"
        # The definition has the published bits.
        moves = Moves(self.norm.lower(), self.eps, self.impl, "reference" if published else "auto")
        best = moves.start(x0, draws)
        logits = oracle.logits(best.view(shape))
        ahead, loss = self._rate(logits, points.labels)
        result, broken = best.clone(), logits.argmax(1) != points.labels
        at = torch.arange(len(x0), device=x0.device)
        left = Left(best, x0, points.labels, at, ahead, loss)
        left = _go_on(left, draws)

        def rate(candidates: Tensor, labels: Tensor) -> Rated:
            logits = oracle.logits(candidates.view(-1, *shape[1:]))
            return (*self._rate(logits, labels), logits.argmax(1) != labels)

        blocks = Blocks(ROWS_ON_CPU if x0.device.type == "cpu" else oracle.rows)
        query = 0
        while query < self.queries and len(left.at):
            watch(query / self.queries)
            window = self._window(query, sides)
            rooms = (sides[1] - window[0], sides[2] - window[1])
            count = 1
            if isinstance(draws, KeyedDraws) and self.fold:
                count = self._alike(query, blocks.count(len(left.at)), window, sides)
            if count > 1 and isinstance(draws, KeyedDraws):
                drawn = draws.block(query, count, rooms)
                count = drawn.places.shape[1]
                asked = ask_block(left, moves, window, drawn, rate)
            else:
                asked = ask_one(left, moves, window, draws.query(query, rooms), rate)
            query += count
            blocks.note(asked.taken, len(left.at), count)
            if asked.solved.any():
                done = asked.solved.nonzero()[:, 0]
                result[left.at[done]] = left.best[done]
                broken[left.at[done]] = asked.broken[done]
                left = _go_on(left, draws)
        return result.view(shape), broken

    def _window(self, query: int, sides: tuple[int, int, int]) -> Window:
        covered = share(query, self.queries, self.p_init, self.rescale_schedule)
        return window_sides(covered, *sides, self.norm.lower(), self.rng == "upstream")

    def _alike(self, query: int, count: int, window: Window, sides: tuple[int, int, int]) -> int:
        """How many of the next `count` queries have this window."""
        count = min(count, self.queries - query)
        while count > 1 and self._window(query + count - 1, sides) != window:
            count -= 1
        return count

    def _rate(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """([n] margins, [n] losses)."""
        ahead = -margin(logits, labels)
        return ahead, ahead if self.loss == "margin" else -ce(logits, labels)


def _go_on(left: Left, draws: Draws) -> Left:
    """Those whose margin is above 0."""
    # NaN is neither: a sample that has it is asked on.
    index = (~(left.margin <= 0)).nonzero()[:, 0]
    if len(index) == len(left.at):
        return left
    draws.keep(index)
    return left.selected(index)
