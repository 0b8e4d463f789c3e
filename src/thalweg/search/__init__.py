"""Many trainings of one model: the learning rate, the rule and the batch size are chosen while they run."""
