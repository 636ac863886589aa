#!/bin/sh
# The command `tollhouse` for root, of a machine whose services are systemd's: as their user, in their folder and with
# their settings. Installed as /usr/local/bin/tollhouse; docs/deployment.md says how.
set -eu
CONFIG=/etc/tollhouse

refuse() {
    echo "tollhouse: $2" >&2
    exit "$1"
}

# What stands after NAME=, as systemd reads it. Fails where that would go on after the closing quote or on the next line.
value() {
    printf '%s\n' "$1" | LC_ALL=C sed -nE '
        s/^[[:space:]]+//
        s/[[:space:]]+$//
        /^"([^"\\]|\\.)*"$/ { s/^"|"$//g; s/\\(["\\`$])/\1/g; p; q }
        /^\x27[^\x27]*\x27$/ { s/\x27//g; p; q }
        /^["\x27]|^([^\\]|\\.)*\\$/ q1
        s/\\(.)/\1/g
        p'
}

# Line by line, because no shell may look at the values. What is no variable's name, systemd skips.
take() {
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in *=*) ;; *) continue ;; esac
        name=$(printf '%s\n' "${line%%=*}" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//')
        case $name in '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
        value=$(value "${line#*=}") || refuse 3 "$1: write the value of $name on one line and in one pair of quotes"
        export "$name=$value"
    done <"$1"
}

[ "$(id -u)" = 0 ] || refuse 1 "this is for root, as in: sudo $0 $*"
# As in tollhouse.service and, for the sidecar on this machine that it checks, in tollhouse-sidecar@0.service.
export TOLLHOUSE__POLICIES=$CONFIG/policies TOLLHOUSE__ADMIN__SOCKET=/run/tollhouse/admin.sock
export TOLLHOUSE_SIDECAR_CONFIG=$CONFIG/sidecar.yaml TOLLHOUSE_SIDECAR__CACHE=/var/cache/tollhouse
export TOLLHOUSE_SIDECAR__SOCKET=/run/tollhouse/sidecar-0.sock
for file in "$CONFIG/sidecar-0.env" "$CONFIG/proxy.env"; do
    [ ! -e "$file" ] || take "$file"
done
cd /var/lib/tollhouse
umask 077
exec runuser -u tollhouse -- /opt/tollhouse/bin/tollhouse --config "$CONFIG/proxy.yaml" "$@"
