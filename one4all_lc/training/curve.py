"""The loss of a training as a picture."""

from pathlib import Path

from one4all_lc.training.checkpoint import Standing

CURVE_FILE = "loss.png"
SMOOTHED_STEPS = 20


def loss_curve(standing: Standing, path: Path, title: str) -> bool:
    """Draw the loss by step, of training and of dev rows.

    Returns:
        False if matplotlib is not there: pip install 'one4all_lc[reports]'.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    losses = standing.losses
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="#c8c8c8", linewidth=0.8, label="training, each step")
    axes.plot(steps, smoothed(losses), color="#1f5fa8", label=f"mean of {SMOOTHED_STEPS} steps")
    if standing.dev_losses:
        axes.plot(*zip(*standing.dev_losses, strict=True), "o-", color="#c8641e", label="dev rows")
        axes.axvline(standing.best_step, color="#c8641e", linewidth=0.6, linestyle="--")
    axes.set(xlabel="step", ylabel="loss per answer token", title=title)
    axes.legend()
    # No date and no version inside: the same run gives the same file.
    figure.savefig(path, dpi=100, metadata={"Software": None})
    return True


def smoothed(losses: list[float]) -> list[float]:
    """Return the mean of each loss and those shortly before it."""
    windows = (losses[max(0, end - SMOOTHED_STEPS) : end] for end in range(1, len(losses) + 1))
    return [sum(window) / len(window) for window in windows]
