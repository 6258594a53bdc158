"""Training rounds: existing trainers behind one seam, each in a child process. Here because rewards and rows are the memory's; no SQL."""
