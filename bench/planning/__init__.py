"""What a card that need not be here can serve."""
