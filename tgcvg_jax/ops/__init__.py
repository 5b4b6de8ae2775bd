"""Pure maths on arrays: no parameters, and no random draws but by a seed given."""
