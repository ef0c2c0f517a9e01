"""The diagonal Fisher information of a classifier: exact, sampled, empirical, and the shortcut that is not it."""

from clplat.fisher.definition import FisherBatch, FisherKind, Logits, naive_fisher
from clplat.fisher.estimate import Way, coverage, diagonal_fisher

__all__ = ["FisherBatch", "FisherKind", "Logits", "Way", "coverage", "diagonal_fisher", "naive_fisher"]
