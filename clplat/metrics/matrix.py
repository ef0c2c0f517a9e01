"""What is derived from the matrix ``R[i, j]``: the primary metric after train experience i, on test experience j.

n train experiences (i from 0 to n-1); j runs over the test experiences seen by the end, t(i) is the test experience of
train experience i, and f(j) and l(j) are the first and the last i with t(i) = j. Where no task returns all of them are
the same number, and the formulas are those of the papers. ``b[j]`` is the untrained network's value.

For a metric that is better when smaller the signs of the differences are turned, so that a positive forgetting always
means that something was lost and a positive transfer that something was gained; averages stay as they are.
"""

from __future__ import annotations

from clplat.metrics.evidence import Evidence, NotMeasuredError, mean

NONE = "there is no experience"


def average(run: Evidence) -> float:
    """ACC: mean over j of ``R[n-1, j]`` (Lopez-Paz and Ranzato 2017, eq. 2)."""
    return mean([run.at(run.n - 1, j) for j in run.seen], NONE)


def average_incremental(run: Evidence) -> float:
    """AIA: mean over i of the mean over the j seen by then of ``R[i, j]`` (Rebuffi et al. 2017, section 4, "average
    incremental accuracy"; De Lange et al. call it the average over ACC_i)."""
    rows = [mean([run.at(i, j) for j, f in run.first.items() if f <= i], NONE) for i in range(run.n)]
    return mean(rows, NONE)


def forgetting(run: Evidence) -> float:
    """Forgetting, from the best: mean over the earlier j of ``max_{f(j)<=i<n-1} R[i, j] - R[n-1, j]`` (Chaudhry et al.
    2018, eq. 3, with the maximum from f(j) on: what was known of j before it was seen cannot be forgotten).

    Earlier are all but the one that was trained last.
    """
    lost = [run.best(j) - run.good(run.n - 1, j) for j in run.earlier]
    return mean(lost, "forgetting needs two experiences")


def forgetting_first(run: Evidence) -> float:
    """Forgetting, from the first: mean over the earlier j of ``R[f(j), j] - R[n-1, j]``: since it was first learned
    (Avalanche's Forgetting). Negative where it got better later."""
    lost = [run.good(run.first[j], j) - run.good(run.n - 1, j) for j in run.earlier]
    return mean(lost, "forgetting needs two experiences")


def relative_forgetting(run: Evidence) -> float:
    """Forgetting as a share of the best: mean over the earlier j of ``(best_j - R[n-1, j]) / |best_j|``, with best_j as
    in forgetting. 1 means that all of it is gone; for a loss, that it has doubled."""
    shares = []
    for j in run.earlier:
        if run.best(j) == 0:
            raise NotMeasuredError(f"the best value on experience {j} is 0, of which there is no share")
        shares.append((run.best(j) - run.good(run.n - 1, j)) / abs(run.best(j)))
    return mean(shares, "relative forgetting needs two experiences")


def backward_transfer(run: Evidence) -> float:
    """BWT: mean over the earlier j of ``R[n-1, j] - R[l(j), j]`` (Lopez-Paz and Ranzato 2017, eq. 3): since j was last
    learned."""
    gained = [run.good(run.n - 1, j) - run.good(run.last[j], j) for j in run.earlier]
    return mean(gained, "backward transfer needs two experiences")


def forward_transfer(run: Evidence) -> float:
    """FWT: mean over the j first seen after the first experience of ``R[f(j)-1, j] - b[j]``, with b measured on this
    run's untrained network (Lopez-Paz and Ranzato 2017, eq. 4).

    Undefined where experiences bring new classes for one head: before a class has been seen there is nothing that
    could have taught its output, so R[f(j)-1, j] says that the head was trained on other classes and no more.
    """
    if run.new_classes:
        raise NotMeasuredError(
            "undefined in class-incremental learning, because no output for the classes of an experience is trained "
            "before it comes"
        )
    gained = [run.good(f - 1, j) - run.good(-1, j) for j, f in run.first.items() if f > 0]
    return mean(gained, "forward transfer needs two experiences")


def learning_accuracy(run: Evidence) -> float:
    """LA: mean over i of ``R[i, t(i)]``: how well each experience was learned when it came (Riemer et al. 2019)."""
    return mean([run.at(i, run.test(i)) for i in range(run.n)], NONE)


def plasticity(run: Evidence) -> float:
    """Plasticity: mean over i of ``R[i, t(i)] - R[i-1, t(i)]`` with ``R[-1, j] = b[j]``: what training on an experience
    adds on its own test data. Authors differ in what they call so; learning accuracy is the one without a difference.
    """
    return mean([run.good(i, run.test(i)) - run.good(i - 1, run.test(i)) for i in range(run.n)], NONE)


def recency_bias(run: Evidence) -> float:
    """Recency bias: ``R[n-1, t(n-1)]`` less the mean over the earlier j of ``R[n-1, j]``: how much better the network
    is at what it learned last (the effect is that of Wu et al. 2019 and Masana et al. 2022, section 3.3)."""
    before = mean([run.good(run.n - 1, j) for j in run.earlier], "recency bias needs two experiences")
    return run.good(run.n - 1, run.test(run.n - 1)) - before


def _against(run: Evidence) -> list[float]:
    """For each train experience what the references had of it when it came, less what this run had; over several
    references their mean."""
    if not run.references:
        raise NotMeasuredError("needs a reference: clplat metrics RUN --reference RUN")
    if any(other.direction != run.direction for other in run.references):
        raise NotMeasuredError("the reference has another primary metric")
    differences = []
    for i in range(run.n):
        j = run.test(i)
        theirs = mean([other.good(i, j) for other in run.references], NONE)
        differences.append(theirs - run.good(i, j))
    return differences


def intransigence(run: Evidence) -> float:
    """Intransigence: mean over i of ``R*[i, t(i)] - R[i, t(i)]``, with R* of a reference that trains on all data so far
    (a run with ``--strategy cumulative``): what could have been learned and was not (Chaudhry et al. 2018, section
    3.2, there for the last experience)."""
    return mean(_against(run), NONE)


def forward_transfer_reference(run: Evidence) -> float:
    """FWT against a reference: mean over i > 0 of ``R[i, t(i)] - R*[i, t(i)]``, with R* of a reference that learns each
    experience from nothing: what earlier experiences gave to learning this one (as in Wolczyk et al. 2021, who take
    areas under learning curves)."""
    return mean([-lost for lost in _against(run)[1:]], "forward transfer needs two experiences")
