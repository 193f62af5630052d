"""Takes a smoked image to its users: gate, attestations, signatures, tags; and verifies what was published."""
