"""What a run's folder holds, and sweeps of runs."""
