"""Three replicas behind HAProxy on one S3 bucket and one Redis; one is killed, one drained, one hangs.

farm.py                     the processes
load.py                     open-loop requests with keys, repeated as a client should
scenario.py                 what happens to the replicas, and what must be true afterwards
prove.py, test_replicas.py  the same at length (`make replicas-proof`) and in short
test_balancer.py            HAProxy's configuration alone, in front of stubs
"""
