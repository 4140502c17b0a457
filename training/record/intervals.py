"""The probability of every interval, and the factor that it has for few observations."""

from scipy.stats import t as student

PROBABILITY = 0.9


def t_quantile(degrees: int) -> float:
    """Half the width of the central interval of Student's t, by its degrees of freedom."""
    return float(student.ppf((1 + PROBABILITY) / 2, degrees))
