"""A scripted month over the real desk: customers, their signals, a round of training and what became of it."""
