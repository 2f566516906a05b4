"""Training losses, one class a file, looked up by name.

Every loss is called alike, `loss(measured, label, weight, teacher, n_positives)`. The first four are (B, C): distances
or similarities (as its `measure` says) of B queries to C videos, 1 for a positive, what a cell counts (0: a known
related video, not at all; None: 1 for all) and the frozen cosine of the cell (None unless the loss is `taught`). No
query has more than `n_positives` positives, so that a GPU need not be asked (None: unknown). What it returns is
unreduced.
"""
