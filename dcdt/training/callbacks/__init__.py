"""What happens around training: best weights, results, progress, Weights & Biases."""
