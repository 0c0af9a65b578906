"""Proof of the container image without a Docker daemon: `make container-proof`, as root on Debian.

base.py     a base image from Debian's packages, for machines that reach no registry
image.py    the Bento, its image, and what is and is not in it
podman.py   containers without network, root or a writable root file system
load.py     the client, which runs inside the container's network
prove.py    all of it in order, with timings; the last line is JSON
"""
