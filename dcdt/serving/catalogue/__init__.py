"""The videos that a run recommends from: LanceDB's table is the truth, a snapshot of it or the table is searched."""
