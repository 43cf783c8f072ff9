"""Work in independent tasks, done by threads of this process or by the workers of a Ray cluster.

What a task computes does not depend on where it runs: the same function, the same number of threads, sums in the same
order, so the same bytes come out. Everything that several tasks share is written by one process, which started them:
journal, index, table. A task writes only files of its own, whole or not at all, whose bytes do not depend on who writes
them: a rounded tensor, a matrix of moments. So a task that was lost with its worker is just done again, and it does no
harm if the lost one comes back and writes its file a second time.
"""
