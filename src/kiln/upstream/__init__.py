"""Where original sources come from: released wheels, and the distribution's packages."""
