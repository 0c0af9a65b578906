#!/bin/sh
# Runs as root at the end of the image's build, after the packages.
set -eu

# The folders that are meant to be mounted belong to the service's user, so that a new volume does, too.
install -d -o 1034 -g 1034 /data /models

# Triton comes with torch for CUDA, and compiles a C file when it first meets a device. The CPU image has no compiler.
if ls -d /app/.venv/lib/python3*/site-packages/triton >/dev/null 2>&1; then
  headers=$(/app/.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends gcc libc6-dev
  test -e "$headers/Python.h" || apt-get install -y -qq --no-install-recommends python3-dev
  rm -rf /var/lib/apt/lists/*
fi
