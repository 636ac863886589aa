#!/bin/sh
# The command `tollhouse` for root, of a machine whose services are systemd's: as their user, in their folder and with
# their settings. Installed as /usr/local/bin/tollhouse; docs/deployment.md says how.
set -eu
ENVIRONMENT=/etc/tollhouse/proxy.env

[ "$(id -u)" = 0 ] || {
    echo "tollhouse: this is for root, as in: sudo $0 $*" >&2
    exit 1
}
# As in tollhouse.service.
export TOLLHOUSE__POLICIES=/etc/tollhouse/policies TOLLHOUSE__ADMIN__SOCKET=/run/tollhouse/admin.sock
if [ -e "$ENVIRONMENT" ]; then
    # Line by line, because no shell may look at the values.
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in [A-Za-z_]*=*) ;; *) continue ;; esac
        value=${line#*=}
        case $value in
            \"*\") value=${value#\"} value=${value%\"} ;;
            \'*\') value=${value#\'} value=${value%\'} ;;
        esac
        export "${line%%=*}=$value"
    done <"$ENVIRONMENT"
fi
cd /var/lib/tollhouse
umask 077
exec runuser -u tollhouse -- /opt/tollhouse/bin/tollhouse --config /etc/tollhouse/proxy.yaml "$@"
