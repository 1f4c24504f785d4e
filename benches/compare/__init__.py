"""captree beside its peers: one command, one table, one plot, one record.

    make compare                                  # installs the peers first
    python -m benches.compare --rows 200000 --data flat --peers numpy,captree

Data flows one way: `data` makes vectors, caps and the true answers and saves them; `worker` runs one peer in a process
of its own (so that its memory is its own, and no two OpenMP runtimes meet) and times it with `measure`; `quality`
judges what it answered; `report` prints, plots and records.
"""
