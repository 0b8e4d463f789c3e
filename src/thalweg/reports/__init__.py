"""Records turned into pictures and sentences: a page, a figure, a line of progress. Never torch."""
