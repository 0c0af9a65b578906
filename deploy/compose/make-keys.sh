#!/bin/sh
# Makes secrets/ beside this file: a key for clients, one for Prometheus, and Grafana's password. What is there stays.
#   secrets/api-keys           what the service reads: the digests of both keys
#   secrets/client-key         the client's key; hand it out and delete it
#   secrets/metrics-key        Prometheus' key
#   secrets/grafana-password   of the user admin
# For new keys delete api-keys, client-key and metrics-key.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
chmod 711 secrets

secret() {
  head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'
}

digest() {
  printf '%s' "$1" | sha256sum | cut -d ' ' -f 1
}

if test -e secrets/api-keys && ! test -e secrets/metrics-key; then
  echo 'secrets/metrics-key is missing, and secrets/api-keys has its digest: delete api-keys, too, to make all keys anew' >&2
  exit 1
fi
for name in metrics-key grafana-password; do
  test -e "secrets/$name" || secret > "secrets/$name"
done
# Where api-keys is there, a client's key that is gone stays gone: a new one would not be in it.
if ! test -e secrets/api-keys; then
  test -e secrets/client-key || secret > secrets/client-key
  for name in client metrics; do
    printf '# %s\nsha256:%s\n' "$name" "$(digest "$(cat "secrets/$name-key")")"
  done > secrets/api-keys.new
  mv secrets/api-keys.new secrets/api-keys
fi
# The containers' users are not this one. Compose mounts the files as they are.
chmod 644 secrets/api-keys secrets/metrics-key secrets/grafana-password
if test -e secrets/client-key; then
  echo "the client's key is $(cat secrets/client-key)"
else
  echo "the client's key was handed out and deleted; secrets/api-keys still knows it"
fi
