"""Update rules by name, learning-rate schedules, weight averages."""
