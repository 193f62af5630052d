"""What stands between a smoked image and its users: evidence so far."""
