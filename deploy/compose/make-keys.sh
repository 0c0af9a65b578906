#!/bin/sh
# Makes secrets/ beside this file: a key for clients, one for Prometheus, and Grafana's password. What is there stays.
#   secrets/api-keys           what the service reads: the digests of both keys
#   secrets/client-key         the client's key; hand it out and delete it
#   secrets/metrics-key        Prometheus' key
#   secrets/grafana-password   of the user admin
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 711 secrets

secret() {
  head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'
}

digest() {
  printf '%s' "$1" | sha256sum | cut -d ' ' -f 1
}

for name in client-key metrics-key grafana-password; do
  test -e "secrets/$name" || secret > "secrets/$name"
done
test -e secrets/api-keys || for name in client metrics; do
  printf '# %s\nsha256:%s\n' "$name" "$(digest "$(cat "secrets/$name-key")")"
done > secrets/api-keys
# The containers' users are not this one. Compose mounts the files as they are.
chmod 644 secrets/api-keys secrets/metrics-key secrets/grafana-password
chmod 600 secrets/client-key
echo "the client's key is $(cat secrets/client-key)"
