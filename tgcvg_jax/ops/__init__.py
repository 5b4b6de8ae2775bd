"""Pure maths: nothing here draws random numbers or has parameters."""
