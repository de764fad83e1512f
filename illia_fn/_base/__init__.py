"""The ground floor: checks, numerics, trees."""
