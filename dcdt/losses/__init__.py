"""Training losses, one class a file, looked up by name.

Every loss is called alike, `loss(measured, label, weight, teacher)`, each (B, C): distances or similarities (as its
`measure` says) of B queries to C videos, 1 for a positive, what a cell counts (0: a known related video, not at all;
None: 1 for all) and the frozen cosine of the cell (None unless the loss is `taught`). What it returns is unreduced.
"""
