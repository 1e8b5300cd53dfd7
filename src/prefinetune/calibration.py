"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599, section 4.2): one number that logits are divided by, fitted on rows
that the model was not trained on. It moves probabilities and no prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Of the logarithm: where every row is answered rightly, or the logits say nothing, there is no minimum.
LOWEST, HIGHEST = -5.0, 5.0


def fit_temperature(logits: Sequence[np.ndarray], chosen: Sequence[np.ndarray]) -> float:
    """The temperature with the least mean negative log-likelihood, between exp(-5) and exp(5).

    Args:
        logits: per example [c, n] of its c choices; n may differ, and a choice of NaN is passed over.
        chosen: per example [c], which outcome is the true one.
    """
    from scipy.optimize import minimize_scalar

    rows, gold = padded(logits), np.concatenate([np.asarray(one) for one in chosen])
    asked = ~np.isnan(rows[:, 0])
    # In the inverse temperature the likelihood is concave, so that there is one minimum.
    found = minimize_scalar(
        lambda log: negative_log_likelihood(rows[asked], gold[asked], np.exp(log)),
        bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 1e-6},
    )  # fmt: skip
    return float(np.exp(found.x))


def negative_log_likelihood(logits: np.ndarray, chosen: np.ndarray, temperature: float) -> float:
    """The mean over choices, of logits [m, n] and true outcomes [m]."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(chosen)), chosen].mean())


def padded(logits: Sequence[np.ndarray]) -> np.ndarray:
    """[m, n] of the choices of all examples; -inf where one has fewer outcomes than others."""
    widest = max(one.shape[1] for one in logits)
    return np.concatenate([np.pad(one, ((0, 0), (0, widest - one.shape[1])), constant_values=-np.inf) for one in logits])
