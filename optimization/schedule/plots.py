"""Figures of a schedule search."""

import numpy as np
from matplotlib.figure import Figure

from optimization.schedule.plan import CONSTANT, ENDS, ScheduleAnswer
from training.record import figures, keys, layout

Array = np.ndarray


def schedules(answer: ScheduleAnswer) -> Figure:
    """The proportions over tokens, a panel for each strategy."""
    tokens = np.concatenate([[0], answer.predictor.tokens])
    figure, axes = figures.grid(len(answer.strategies), 4, (3.2, 3.4), sharey=True)
    for axis, strategy in zip(axes, answer.strategies.values(), strict=True):
        bottom = np.zeros(len(strategy.schedule))
        for i, domain in enumerate(answer.predictor.domains):
            shares = strategy.schedule[:, i]
            bars = axis.bar(
                tokens[:-1], shares, np.diff(tokens), bottom, align="edge", color=f"C{i}",
                edgecolor="white", linewidth=1.5, label=domain,
            )  # fmt: skip
            labels = [f"{share:.2f}" if share >= 0.06 else "" for share in shares]
            axis.bar_label(bars, labels, label_type="center", color="white", fontsize=8)
            bottom += shares
        axis.set_title(strategy.name)
        axis.set_xlabel("tokens")
        axis.set_xticks(tokens, [layout.short_count(t) if t else "0" for t in tokens])
        axis.margins(x=0)
    axes[0].set_ylabel("proportion")
    handles, _ = axes[0].get_legend_handles_labels()
    figures.legend(figure, handles, columns=8)
    return figure


def gains(answer: ScheduleAnswer) -> Figure:
    """The gain of each strategy over the best constant mixture after each phase, with the range
    over the laws of the bootstrap."""
    constant = answer.strategies[CONSTANT]
    figure, axis = figures.panels((7, 4.2))
    phases = np.arange(1, len(answer.predictor.tokens) + 1)
    others = [strategy for name, strategy in answer.strategies.items() if name != CONSTANT]
    for i, strategy in enumerate(others):
        drawn = constant.replicates - strategy.replicates
        low, high = np.quantile(drawn, ENDS, axis=0)
        gain = constant.objectives - strategy.objectives
        axis.errorbar(
            phases + 0.06 * (i - 1), gain, [np.maximum(0, gain - low), np.maximum(0, high - gain)],
            fmt="o-", capsize=4, color=f"C{i}", label=strategy.name,
        )  # fmt: skip
    axis.axhline(0, color="0.4", linewidth=1)
    axis.set_xticks(phases)
    axis.set_xlabel("after phase")
    axis.set_ylabel(f"predicted gain ({keys.unit_text(answer.predictor.unit)})")
    axis.set_title("Gain over the best constant mixture, 90 % of the bootstrap's laws")
    axis.legend(frameon=False)
    return figure


def retention(answer: ScheduleAnswer) -> Figure:
    """How much of the loss at a phase's start remains at its end (ρ), by validation domain."""
    predictor = answer.predictor
    later = range(1, len(predictor.tokens))
    figure, axis = figures.panels((7, figures.height(len(predictor.val_domains), 0.45)))
    groups = [
        (f"phase {k + 1}", dict(zip(predictor.val_domains, predictor.law.kept[k], strict=True)))
        for k in later
    ]
    colours = [f"C{k}" for k in later]
    handles = figures.bars(axis, groups, colours, list(predictor.val_domains))
    axis.set_xlabel("ρ: what a nat of loss at the phase's start is at its end")
    axis.set_xlim(0, 1)
    axis.set_title("What is left of a phase's start")
    figures.legend(figure, handles)
    return figure
