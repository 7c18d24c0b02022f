"""Training: datasets, teacher forcing, losses, the loop. Nothing of it is loaded unless it is asked for."""
